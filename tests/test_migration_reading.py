"""Recordings, code and texts of every kind are read; none is a reason to fall."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glimmer.errors import UsageError
from glimmer.migration import Direction, Target, scan_paths
from glimmer.migration.code import check_python
from glimmer.migration.finding import FileFindings
from glimmer.migration.requests import MAX_LINE_BYTES
from glimmer.migration.scan import MAX_FILE_BYTES
from glimmer.migration.text import check_text
from tests.test_migration import CASES, HELLO, body, check, ids

TEXTS = {
    "shell": (
        "curl http://localhost:8000/v1/chat/completions -d "
        '\'{"model": "chatglm3-6b", "stop": ["a", "b"], "temperature": 1.5}\'',
        {"address-local", "model-hosted", "stop-words", "temperature-range"},
    ),
    "javascript": (
        "await client.chat.completions.create({ tool_choice: 'required',\n"
        "  max_completion_tokens: 9, response_format: { type: 'json_schema' },\n"
        "  apiKey: process.env.OPENAI_API_KEY })",
        {"tool-choice", "max-completion-tokens", "json-schema", "environment"},
    ),
    "notebook": (
        '"client.chat.completions.create(model=\\"chatglm3-6b\\", temperature=1.2)\\n",',
        {"model-hosted", "temperature-range"},
    ),
    "environment": (
        "ANTHROPIC_BASE_URL=https://api.anthropic.com",
        {"environment", "address-vendor"},
    ),
    "endpoints": ("fetch(`${base}/v1/completions`); // openai", {"endpoint-hosted"}),
    "weather": ('{"temperature": 22} from chatglm', set()),
    "prose": ("The temperature of the model, stop: it is 5 degrees at localhost.", set()),
    "other": ("const model = train(temperature = t, seed = next())  // chatglm", set()),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_text(name: str) -> None:
    text, expected = TEXTS[name]
    findings = FileFindings("file", "hosted", by_line=True)
    check_text(text, Target("hosted"), findings)
    assert ids(findings.sorted()) == expected


def test_text_towards_this_machine() -> None:
    findings = FileFindings("file", "local", by_line=True)
    text = (
        '{"type": "web_search"} {"type": "image_url"} '
        "https://api.z.ai/api/coding/paas/v4 ZAI_API_KEY"
    )
    check_text(text, Target("local"), findings)
    assert ids(findings.sorted()) == {
        "platform-tools", "media-local", "address-hosted", "environment",
    }  # fmt: skip


def test_recordings_that_are_none(tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    lines = [
        b"\xef\xbb\xbf" + json.dumps(body(stop=["a", "b"])).encode(),
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'"text"',
        b'{"model": "\\ud800", "messages": [{"role": "user", "content": "\\udfff"}]}',
        b'{"model": "", "temperature": NaN, "max_tokens": 1e999, "messages": [], "n": -Infinity}',
        b'{"model": 1, "max_tokens": ' + b"9" * 4000 + b', "messages": []}',
        json.dumps({"request": {"url": "/v1/x", "body": body(n=3)}}).encode(),
        b" " * (MAX_LINE_BYTES + 10),
        json.dumps(body(n=3)).encode(),
    ]
    file.write_bytes(b"\n".join(lines))
    scan = scan_paths([file], Target("hosted"))
    assert [(f.line, f.detail) for f in scan.findings if f.rule == "unreadable-line"] == [
        (3, "not JSON"),
        (4, "not UTF-8"),
        (5, "not JSON"),
        (6, "no request"),
        (11, "longer than 16 MiB"),
    ]
    by_rule = {(f.rule, f.detail): (f.line, f.count) for f in scan.findings}
    assert by_rule["stop-words", "stop has 2 entries"] == (1, 1)
    assert by_rule["several-answers", "n is 3"] == (10, 2)
    assert scan.num_requests == 6
    json.dumps([f.detail for f in scan.findings], ensure_ascii=False).encode()


def test_findings_of_a_long_recording_are_few(tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    with file.open("w") as stream:
        for number in range(2000):
            stream.write(json.dumps(body(model=f"model-{number}", n=2)) + "\n")
    scan = scan_paths([file], Target("hosted"))
    assert len(scan.findings) < 30
    assert sum(f.count for f in scan.findings if f.rule == "model-hosted") == 2000


def test_folders(tmp_path: Path) -> None:
    for name in ("src/app.py", "node_modules/x.py", ".git/x.py", "env/lib/x.py", "src/a.rs"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('url = "http://localhost:8000/v1"')
    (tmp_path / "env/pyvenv.cfg").touch()
    (tmp_path / "src/binary.py").write_bytes(b"\0" * 100)
    (tmp_path / "src/large.py").write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    (tmp_path / "src/data.jsonl").write_text(json.dumps({"messages": HELLO}))
    (tmp_path / "src/bad.py").write_text("print 'hello'")
    (tmp_path / "src/deep.py").write_text("x = " + "(" * 5000)
    (tmp_path / "src/escape.py").write_text('"\\d"')
    (tmp_path / "src/latin.py").write_bytes(b"# -*- coding: latin-1 -*-\nx = '\xe9'\n")
    # Followed to the end, this list has 3 ** 98 entries.
    names = [f"a{i} = [a{i + 1}, a{i + 1}, a{i + 1}]" for i in range(98)]
    call = "client.chat.completions.create(messages=a0)"
    (tmp_path / "src/names.py").write_text("\n".join([*names, call]))
    (tmp_path / "src/request.json").write_text(json.dumps([body(n=2)]))
    (tmp_path / "src/loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "src/self.py").symlink_to(tmp_path / "src/self.py")
    os.mkfifo(tmp_path / "src/pipe.py")
    scan = scan_paths([tmp_path], Target("hosted"))
    found = {(Path(f.where).name, f.rule) for f in scan.findings}
    assert found == {
        ("app.py", "address-local"),
        ("a.rs", "address-local"),
        ("large.py", "unreadable-file"),
        ("bad.py", "unreadable-file"),
        ("deep.py", "unreadable-file"),
        ("request.json", "several-answers"),
    }
    assert scan.num_requests == 1


@pytest.mark.parametrize("name", ["binary.txt", "pipe", "data.jsonl", "self.py"])
def test_a_named_file_that_cannot_be_read_is_told(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    if name == "pipe":
        os.mkfifo(file)
    elif name == "self.py":
        file.symlink_to(file)
    else:
        file.write_bytes(b"\0{")
    (found,) = scan_paths([file], Target("hosted")).findings
    assert found.rule == "unreadable-file"


def test_a_missing_path_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file or folder"):
        scan_paths([tmp_path / "nothing"], Target("hosted"))


# Keys and words that rules ask for, so that the fuzz gets past the first test of a value's kind.
WORDS = st.sampled_from(
    [
        *("model", "messages", "role", "content", "type", "tools", "function", "url", "body"),
        *("request", "stop", "temperature", "max_tokens", "thinking", "response_format", "n"),
        *(
            "user",
            "assistant",
            "system",
            "image_url",
            "text",
            "chatglm3-6b",
            "embedding-3",
            "input",
        ),
        *("dimensions", "request_id", "/v1/chat/completions", "/v1/embeddings", "json_schema"),
    ]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=5)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=6),
    max_leaves=25,
)
PARAMETERS = sorted({name for case, _ in CASES.values() if isinstance(case, dict) for name in case})
REQUESTS = st.fixed_dictionaries({}, optional=dict.fromkeys(PARAMETERS, VALUES))


@settings(max_examples=300, deadline=None)
@given(st.lists(REQUESTS | VALUES, max_size=3), st.sampled_from(["hosted", "local"]))
def test_no_request_is_a_reason_to_fall(values: list[Any], direction: Direction) -> None:
    for finding in check(values, direction):
        assert finding.detail
        finding.detail.encode()


@settings(max_examples=100, deadline=None)
@given(VALUES, st.sampled_from(["hosted", "local"]))
def test_no_code_is_a_reason_to_fall(value: Any, direction: Direction) -> None:
    source = f"client.chat.completions.create(**{value!r})\nrequests.post('/v1/x', json={value!r})"
    for finding in check(source, direction):
        assert finding.detail


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="\"\\'{}[]:=., \nstopmdel_19truh/:v", max_size=200))
def test_no_text_is_a_reason_to_fall(text: str) -> None:
    findings = FileFindings("file", "hosted", by_line=True)
    check_text(text, Target("hosted"), findings)
    check_python(text.encode(), Target("hosted"), findings)
