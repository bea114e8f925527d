"""Fetches models from the hubs, whole and checked, and finds what was fetched.

Hugging Face's files lie in the cache that its other programs share; its library downloads them.
ModelScope has no such library among ours: its few requests are made here, with files kept where its
own programs look for them.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from glimmer.errors import DownloadError, InvalidParameterError, OutputError

Hub = Literal["huggingface", "modelscope"]
Progress = Callable[[str, int, int], None]
"""File, bytes of it that are here, bytes of it in all."""

MODELSCOPE_ENDPOINT = "https://modelscope.cn"
_WANTED = (
    "*.safetensors", "*.bin", "*.index.json", "config.json", "generation_config.json",
    "tokenizer*", "*.model", "chat_template*", "special_tokens_map.json", "added_tokens.json",
    "LICENSE*", "MODEL_LICENSE*",
)  # fmt: skip
# Code is never fetched; the rest is weights that nothing reads.
_UNWANTED = ("*.py", "training_args.bin", "optimizer*", "scheduler*", "*.gguf", "original/*")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    name: str
    size_bytes: int
    sha256: str | None
    """None for small files, which the hub keeps as text."""


def pull(
    hub: Hub,
    repo_id: str,
    *,
    revision: str | None = None,
    progress: Progress = lambda name, done, total: None,
) -> Path:
    """Fetch what a model needs and return its folder. Files that are here already are kept.

    A download that broke off goes on where it ended. Every large file's SHA-256 is compared with
    the hub's; one that differs is deleted.

    Raises:
        DownloadError: no network, no such model, no permission, or a file that is not what the hub
            says.
        OutputError: the disk has no room; said before the first byte.
    """
    if hub not in get_args(Hub):
        raise InvalidParameterError(
            f"The source must be {' or '.join(get_args(Hub))}, but it is {hub!r}."
        )
    if hub == "huggingface":
        return _pull_huggingface(repo_id, revision, progress)
    return _pull_modelscope(repo_id, revision or "master", progress)


def find_pulled(repo_ids: Sequence[str], modelscope_id: str | None) -> Path | None:
    """The folder of a model that was fetched before, under any of its names."""
    for repo_id in repo_ids:
        if (path := _find_huggingface(repo_id)) is not None:
            return path
    if modelscope_id is not None:
        folder = _modelscope_folder(modelscope_id)
        if (folder / "config.json").is_file():
            return folder
    return None


def remove(path: Path) -> int:
    """Delete a fetched model's folder; bytes that became free.

    Raises:
        InvalidParameterError: the folder was not fetched by ``pull``.
    """
    import huggingface_hub
    from huggingface_hub.errors import CacheNotFound

    cache = modelscope_cache()
    if path.resolve().is_relative_to(cache.resolve()):
        size = folder_size(path)
        shutil.rmtree(path)
        return size
    try:
        info = huggingface_hub.scan_cache_dir()
    except CacheNotFound:
        info = None
    for repo in info.repos if info is not None else ():
        for revision in repo.revisions:
            if revision.snapshot_path == path:
                assert info is not None
                strategy = info.delete_revisions(revision.commit_hash)
                size = int(strategy.expected_freed_size)
                strategy.execute()
                return size
    raise InvalidParameterError(
        f"{path} is not in the cache of downloaded models; delete it yourself if you want to."
    )


def folder_size(path: Path) -> int:
    """Bytes of all files below a folder, those that links point to included."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def choose_files(files: Sequence[RemoteFile]) -> list[RemoteFile]:
    """What a model needs: config, tokenizer, licence, and its weights in one format."""
    wanted = [
        file
        for file in files
        if any(fnmatch.fnmatch(file.name, pattern) for pattern in _WANTED)
        and not any(fnmatch.fnmatch(file.name, pattern) for pattern in _UNWANTED)
        and "/" not in file.name
    ]
    if any(file.name.endswith(".safetensors") for file in wanted):
        wanted = [f for f in wanted if not f.name.endswith((".bin", ".bin.index.json"))]
    return wanted


def check_room(folder: Path, needed: int, what: str) -> None:
    """Raise OutputError unless the disk that will hold ``folder`` has room."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise OutputError(
            f"{what} takes {needed / 2**30:.2f} GiB more, but {free / 2**30:.2f} GiB are free on "
            f"the disk of {existing}. Free some space, or set HF_HOME (or MODELSCOPE_CACHE) to a "
            "folder on another disk."
        )


# Hugging Face


def _pull_huggingface(repo_id: str, revision: str | None, progress: Progress) -> Path:
    import huggingface_hub
    from huggingface_hub import constants

    with _hub_errors(repo_id):
        info = huggingface_hub.HfApi().model_info(
            repo_id, revision=revision, files_metadata=True, timeout=30
        )
    files = choose_files(
        [
            RemoteFile(s.rfilename, s.size or 0, s.lfs.sha256 if s.lfs else None)
            for s in info.siblings or ()
        ]
    )
    if not any(file.name == "config.json" for file in files):
        raise DownloadError(
            f"{repo_id} has no config.json, so it is no model that Glimmer reads. Choose another."
        )
    here = {
        file.name: huggingface_hub.try_to_load_from_cache(repo_id, file.name, revision=info.sha)
        for file in files
    }
    missing = [file for file in files if not isinstance(here[file.name], str)]
    cache = Path(constants.HF_HUB_CACHE)
    check_room(cache, sum(file.size_bytes for file in missing), repo_id)
    folder = Path()
    for file in files:
        found = here[file.name]
        if not isinstance(found, str):
            with _hub_errors(repo_id):
                found = huggingface_hub.hf_hub_download(
                    repo_id,
                    file.name,
                    revision=info.sha,
                    tqdm_class=_reporting(file.name, progress),
                )
            _check_hash(Path(found), file, repo_id)
        progress(file.name, file.size_bytes, file.size_bytes)
        folder = Path(found).parent
    return folder


def _find_huggingface(repo_id: str) -> Path | None:
    """The snapshot of its main branch, or else the one that was fetched last."""
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.file_download import repo_folder_name

    try:
        found = huggingface_hub.try_to_load_from_cache(repo_id, "config.json")
    except HFValidationError:
        return None  # no name that the hub could know
    if isinstance(found, str):
        return Path(found).parent
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type="model")
    configs = sorted(folder.glob("snapshots/*/config.json"), key=lambda f: f.lstat().st_mtime)
    return configs[-1].parent if configs else None


def _reporting(name: str, progress: Progress) -> Any:
    """A class in the shape of tqdm's, which is what the library reports to."""
    from tqdm import tqdm

    class Reporting(tqdm):  # type: ignore[misc]  # it has no types
        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            options["disable"] = True  # nothing of its own on the terminal
            super().__init__(*args, **options)
            self.n = options.get("initial", 0)
            self.total = options.get("total")

        def update(self, n: float | None = 1) -> bool | None:
            self.n += n or 0
            progress(name, int(self.n), int(self.total or self.n))
            return None

    return Reporting


def _network_errors() -> tuple[type[Exception], ...]:
    """What the library's HTTP client raises, whichever it is in this release of it."""
    from huggingface_hub import errors

    bases = [b for b in errors.HfHubHTTPError.__mro__ if b.__module__.startswith("httpx")]
    return (errors.HfHubHTTPError, *(b for b in bases if b.__name__ == "HTTPError"))


@contextmanager
def _hub_errors(repo_id: str) -> Iterator[None]:
    """The library's errors, said with what to do."""
    from huggingface_hub import errors

    network_errors = _network_errors()
    try:
        yield
    except errors.GatedRepoError as error:
        raise DownloadError(
            f"{repo_id} is given only to those who have agreed to its licence. Agree on its page, "
            "then set HF_TOKEN to a token of your account."
        ) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise DownloadError(
            f"Hugging Face has no model {repo_id!r}, or it is private (HF_TOKEN). `glimmer list` "
            "names the releases."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise DownloadError(f"{repo_id} has no such revision: {error}.") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise DownloadError(
            f"{repo_id} is not here, and Hugging Face cannot be asked: HF_HUB_OFFLINE is set, or "
            f"there is no network ({error})."
        ) from error
    except network_errors as error:
        raise DownloadError(
            f"The download of {repo_id} failed: {error}. Run the same command again: it goes on "
            "where it ended. HF_ENDPOINT names a mirror, --source modelscope another hub."
        ) from error
    except OSError as error:
        raise DownloadError(
            f"The download of {repo_id} failed: {error.strerror or error}. Run the same command "
            "again: it goes on where it ended."
        ) from error


def _check_hash(path: Path, file: RemoteFile, repo_id: str) -> None:
    """Raise DownloadError, and delete the file, unless it is what the hub says."""
    size = path.stat().st_size
    problem = f"has {size} bytes and not {file.size_bytes}" if size != file.size_bytes else None
    if problem is None and file.sha256 is not None:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if digest != file.sha256:
            problem = f"has the SHA-256 {digest} and not {file.sha256}"
    if problem is None:
        return
    path.resolve().unlink()  # in the shared cache a file is a link to its content
    path.unlink(missing_ok=True)
    raise DownloadError(
        f"{file.name} of {repo_id} {problem}: it was damaged on its way, or is not what was "
        "published. It was deleted; run the same command again."
    )


# ModelScope


def modelscope_cache() -> Path:
    given = os.environ.get("MODELSCOPE_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "modelscope" / "hub"


def _modelscope_folder(model_id: str) -> Path:
    return modelscope_cache() / "models" / Path(*model_id.split("/"))


def _pull_modelscope(model_id: str, revision: str, progress: Progress) -> Path:
    import httpx

    endpoint = os.environ.get("MODELSCOPE_ENDPOINT", MODELSCOPE_ENDPOINT).rstrip("/")
    base = f"{endpoint}/api/v1/models/{model_id}/repo"
    folder = _modelscope_folder(model_id)
    with httpx.Client(timeout=30, follow_redirects=True) as client, _modelscope_errors(model_id):
        answer = client.get(f"{base}/files", params={"Revision": revision, "Recursive": "true"})
        answer.raise_for_status()
        listed = answer.json()["Data"]["Files"]
        files = choose_files(
            [
                RemoteFile(_plain_name(f["Path"]), int(f["Size"]), f.get("Sha256"))
                for f in listed
                if f.get("Type") != "tree"
            ]
        )
        missing = [f for f in files if not _is_here(folder / f.name, f)]
        check_room(folder, sum(file.size_bytes for file in missing), model_id)
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            if file in missing:
                params = {"Revision": revision, "FilePath": file.name}
                _fetch(client, base, params, folder, file, model_id, progress)
            progress(file.name, file.size_bytes, file.size_bytes)
    return folder


def _plain_name(path: str) -> str:
    """A path that stays below the model's folder."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts:
        raise DownloadError(f"ModelScope lists a file {path!r}, which lies outside the model.")
    return str(pure)


def _is_here(path: Path, file: RemoteFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size_bytes


def _fetch(
    client: Any,
    url: str,
    params: dict[str, str],
    folder: Path,
    file: RemoteFile,
    model_id: str,
    progress: Progress,
) -> None:
    """One file, under a temporary name until it is whole and checked."""
    part = folder / f"{file.name}.incomplete"
    done = part.stat().st_size if part.is_file() else 0
    if done > file.size_bytes:
        part.unlink()
        done = 0
    headers = {"Range": f"bytes={done}-"} if done else {}
    if done < file.size_bytes or not done:
        with client.stream("GET", url, params=params, headers=headers) as answer:
            answer.raise_for_status()
            resumed = answer.status_code == 206
            done = done if resumed else 0
            with part.open("ab" if resumed else "wb") as stream:
                for chunk in answer.iter_bytes():  # as they come, so that none is lost
                    stream.write(chunk)
                    done += len(chunk)
                    progress(file.name, done, file.size_bytes)
    _check_hash(part, file, model_id)
    part.replace(folder / file.name)


@contextmanager
def _modelscope_errors(model_id: str) -> Iterator[None]:
    import httpx

    try:
        yield
    except httpx.HTTPStatusError as error:
        code = error.response.status_code
        why = {
            404: f"ModelScope has no model {model_id!r}",
            401: f"ModelScope gives {model_id} only to those who may have it",
            403: f"ModelScope gives {model_id} only to those who may have it",
        }.get(code, f"ModelScope answered {code} when asked for {model_id}")
        raise DownloadError(f"{why}. `glimmer list` names the releases.") from error
    except httpx.HTTPError as error:
        raise DownloadError(
            f"The download of {model_id} failed: {error or type(error).__name__}. Run the same "
            "command again: it goes on where it ended."
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise DownloadError(
            f"ModelScope's list of the files of {model_id} cannot be read: {error!r}."
        ) from error
