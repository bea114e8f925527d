"""Fetching from hubs that break off, lie and refuse: two small ones on this machine."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlparse

import pytest

from glimmer import catalogue, downloads
from glimmer.cli.main import main
from glimmer.errors import DownloadError, InvalidParameterError, ModelNotFoundError, OutputError

REPO = "someone/tiny-model"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = bytes(range(256)) * 4096


class Hub(BaseHTTPRequestHandler):
    """The routes of Hugging Face and ModelScope that a download takes."""

    files: ClassVar[dict[str, bytes]] = {}
    lies: ClassVar[set[str]] = set()
    """Files whose hash the hub tells wrongly."""
    breaks: ClassVar[dict[str, int]] = {}
    """Files whose first answer ends after so many bytes."""
    status: ClassVar[int] = 200
    ranges: ClassVar[list[str]] = []
    fetched: ClassVar[list[str]] = []

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def sha256(self, name: str) -> str:
        digest = hashlib.sha256(self.files[name]).hexdigest()
        return "0" * 64 if name in self.lies else digest

    def answer_json(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.answer(send_body=False)

    def do_GET(self) -> None:
        self.answer(send_body=True)

    def answer(self, send_body: bool) -> None:
        url = urlparse(self.path)
        parts = unquote(url.path).strip("/").split("/")
        if self.status != 200:
            self.send_response(self.status)
            code = {403: "GatedRepo", 401: "RepoNotFound", 404: "RepoNotFound"}.get(self.status)
            if code is not None:
                self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif parts[:2] == ["api", "models"]:
            siblings = [
                {"rfilename": name, "size": len(data), "blobId": "b"}
                | ({"lfs": {"sha256": self.sha256(name), "size": len(data), "pointerSize": 1}}
                   if name.endswith("safetensors") else {})
                for name, data in self.files.items()
            ]  # fmt: skip
            self.answer_json({"id": REPO, "sha": COMMIT, "siblings": siblings})
        elif parts[:3] == ["api", "v1", "models"] and parts[-1] == "files":
            listed = [
                {"Path": name, "Size": len(data), "Sha256": self.sha256(name), "Type": "blob"}
                for name, data in self.files.items()
            ]
            self.answer_json({"Code": 200, "Data": {"Files": listed}})
        elif parts[:3] == ["api", "v1", "models"]:
            self.send_file(parse_qs(url.query)["FilePath"][0], send_body)
        elif "resolve" in parts:
            self.send_file("/".join(parts[parts.index("resolve") + 2 :]), send_body)
        else:
            self.send_error(404)

    def send_file(self, name: str, send_body: bool) -> None:
        data = self.files[name]
        start = 0
        if (wanted := self.headers.get("Range")) is not None:
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            self.ranges.append(wanted)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.end_headers()
        if not send_body:
            return
        self.fetched.append(name)
        body = data[start:]
        if name in self.breaks:
            self.wfile.write(body[: self.breaks.pop(name)])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
        else:
            self.wfile.write(body)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    Hub.files = {
        "config.json": b'{"model_type": "chatglm"}',
        "model.safetensors": WEIGHTS,
        "pytorch_model.bin": b"the same once more",
        "modeling_chatglm.py": b"import os",
        "tokenizer.model": b"pieces",
        "MODEL_LICENSE": b"terms",
        "README.md": b"read me",
    }
    Hub.lies, Hub.breaks, Hub.status, Hub.ranges, Hub.fetched = set(), {}, 200, [], []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", address)
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    yield Hub
    server.shutdown()
    server.server_close()
    thread.join()


HUBS: tuple[downloads.Hub, ...] = ("huggingface", "modelscope")


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


@pytest.mark.parametrize("source", HUBS)
def test_what_a_model_needs_is_fetched_and_nothing_else(
    hub: type[Hub], source: downloads.Hub
) -> None:
    seen: dict[str, tuple[int, int]] = {}

    def progress(name: str, done: int, total: int) -> None:
        seen[name] = (done, total)

    folder = downloads.pull(source, REPO, progress=progress)
    assert names(folder) == {
        "config.json", "model.safetensors", "tokenizer.model", "MODEL_LICENSE",
    }  # fmt: skip
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert seen["model.safetensors"] == (len(WEIGHTS), len(WEIGHTS))
    assert downloads.find_pulled([REPO], REPO) == folder
    assert catalogue.find_file(REPO) == (folder, None)
    hub.fetched.clear()
    assert downloads.pull(source, REPO) == folder
    assert hub.fetched == []  # all of it was here


@pytest.mark.parametrize("source", HUBS)
def test_a_download_that_broke_off_goes_on_where_it_ended(
    hub: type[Hub], source: downloads.Hub
) -> None:
    hub.breaks = {"model.safetensors": 300_000}
    try:
        folder = downloads.pull(source, REPO)
    except DownloadError as error:
        assert "again" in str(error)  # noqa: PT017  # the library may also have tried by itself
        folder = downloads.pull(source, REPO)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert any(not wanted.startswith("bytes=0-") for wanted in hub.ranges)
    assert not [name for name in names(folder) if "incomplete" in name]


@pytest.mark.parametrize("source", HUBS)
def test_a_file_that_is_not_what_the_hub_says_is_deleted(
    hub: type[Hub], source: downloads.Hub
) -> None:
    hub.lies = {"model.safetensors"}
    with pytest.raises(DownloadError, match=r"model\.safetensors.*SHA-256.*deleted"):
        downloads.pull(source, REPO)
    hub.lies = set()
    folder = downloads.pull(source, REPO)
    assert hub.fetched.count("model.safetensors") == 2
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("source", HUBS)
@pytest.mark.parametrize(
    ("status", "words"), [(404, "no model|list"), (401, "HF_TOKEN|may have it"), (500, "500")]
)
def test_refusals_say_what_to_do(
    hub: type[Hub], source: downloads.Hub, status: int, words: str
) -> None:
    hub.status = status
    with pytest.raises(DownloadError, match=words):
        downloads.pull(source, REPO)


def test_a_gated_model_says_how_to_get_it(hub: type[Hub]) -> None:
    hub.status = 403
    with pytest.raises(DownloadError, match=r"agreed to its licence.*HF_TOKEN"):
        downloads.pull("huggingface", REPO)


@pytest.mark.parametrize("source", HUBS)
def test_the_disk_is_looked_at_before_the_first_byte(
    hub: type[Hub], source: downloads.Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1000))
    with pytest.raises(OutputError, match="are free"):
        downloads.pull(source, REPO)
    assert hub.fetched == []


def test_no_network(hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:1")
    for source in HUBS:
        with pytest.raises(DownloadError, match="again"):
            downloads.pull(source, REPO)


def test_offline_is_obeyed(hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE"):
        downloads.pull("huggingface", REPO)
    assert hub.fetched == []


def test_a_hub_cannot_write_outside_the_model(hub: type[Hub], tmp_path: Path) -> None:
    hub.files = {"config.json": b"{}", "../../evil.json": b"x"}
    with pytest.raises(DownloadError, match="outside"):
        downloads.pull("modelscope", REPO)
    assert not list(tmp_path.rglob("evil.json"))


@pytest.mark.parametrize("source", HUBS)
def test_what_was_fetched_can_be_deleted_and_nothing_else(
    hub: type[Hub], source: downloads.Hub, tmp_path: Path
) -> None:
    folder = downloads.pull(source, REPO)
    assert main(["rm", REPO, "--yes"]) == 0
    assert not folder.exists()
    assert downloads.find_pulled([REPO], REPO) is None
    assert main(["rm", str(tmp_path), "--yes"]) == 2
    with pytest.raises(InvalidParameterError, match="not in the cache"):
        downloads.remove(tmp_path)


def test_commands(hub: type[Hub], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", "THUDM/chatglm3-6b", "--yes", "--json"]) == 0
    shown = capsys.readouterr()
    assert "ChatGLM3-6B License" in shown.err
    path = json.loads(shown.out)["path"]
    assert catalogue.find_file("chatglm3-6b")[0] == Path(path)
    assert main(["list", "--installed", "--json"]) == 0
    listed = {row["name"] for row in json.loads(capsys.readouterr().out)}
    assert "chatglm3-6b" in listed
    assert main(["pull", "no-such-release"]) == 2
    assert main(["pull", "demo"]) == 2
    assert "pip install" in capsys.readouterr().err


def test_names_that_are_nearly_right() -> None:
    with pytest.raises(ModelNotFoundError, match=r"Did you mean .*chatglm3-6b"):
        catalogue.find_file("chatglm3-6")
    with pytest.raises(ModelNotFoundError, match="glimmer pull glm-4-9b-chat"):
        catalogue.find_file("zai-org/GLM-4-9B-Chat")
