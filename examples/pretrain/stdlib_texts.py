"""The documentation that Python itself ships, as texts to train on: train.jsonl and held_out.jsonl.

Two sources of the running interpreter's standard library, under the PSF License Version 2: the
topics of `help()` (pydoc_data.topics, chapters of the language reference), and the docstrings of
all modules but tests. What is held out is a twentieth of the topics and modules, each whole, so
that no text is near to one that is trained on.

    python examples/pretrain/stdlib_texts.py FOLDER
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
import sysconfig
import zlib
from collections.abc import Iterator
from pathlib import Path

_SKIPPED = {"test", "tests", "idlelib", "site-packages", "dist-packages", "__pycache__", "lib2to3"}
_MIN_CHARS = 60


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    counts = {}
    for name, held_out in (("train", False), ("held_out", True)):
        texts = sorted({text for source, text in documents() if is_held_out(source) == held_out})
        lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        counts[name] = (len(texts), sum(map(len, texts)))
    for name, (number, characters) in counts.items():
        print(f"{folder / name}.jsonl: {number} documents, {characters} characters")


def documents() -> Iterator[tuple[str, str]]:
    """What each comes from, and its text."""
    from pydoc_data.topics import topics

    for name, text in topics.items():
        yield f"topic {name}", text.strip()
    library = Path(sysconfig.get_paths()["stdlib"])
    for file in sorted(library.rglob("*.py")):
        path = file.relative_to(library)
        if not _SKIPPED.intersection(path.parts) and path.parts[0] != "pydoc_data":
            for text in docstrings(file):
                yield str(path), text


def docstrings(file: Path) -> Iterator[str]:
    """Of a module and everything in it; short ones are left out."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = inspect.cleandoc(ast.get_docstring(node) or "")
            if len(text) >= _MIN_CHARS:
                yield text


def is_held_out(source: str) -> bool:
    return zlib.crc32(source.encode()) % 20 == 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
