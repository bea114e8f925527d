"""The tree drawn in errors.py is the tree of classes."""

import re

from glimmer import errors

LINE = re.compile(r"^ {4}(?P<branches>[│ ├└─]*)(?P<name>\w+Error)\b(?P<remark>.*)$")


def drawn() -> list[tuple[str, str | None, int | None, bool]]:
    """Name, parent, exit code if told, and whether also a ValueError, for each line drawn."""
    assert errors.__doc__ is not None
    found: list[tuple[str, str | None, int | None, bool]] = []
    above: list[str] = []
    for line in errors.__doc__.splitlines():
        if match := LINE.match(line):
            depth = len(match["branches"]) // 4
            above[depth:] = [match["name"]]
            code = re.search(r"exit code (\d)", match["remark"])
            found.append(
                (
                    match["name"],
                    above[depth - 1] if depth else None,
                    int(code[1]) if code else None,
                    "also a ValueError" in match["remark"],
                )
            )
    return found


def test_the_drawing_names_every_class_once() -> None:
    names = [name for name, *_ in drawn()]
    classes = [n for n, value in vars(errors).items() if isinstance(value, type)]
    assert sorted(names) == sorted(classes)


def test_parents_and_exit_codes_are_as_drawn() -> None:
    for name, parent, exit_code, is_value_error in drawn():
        error = getattr(errors, name)
        bases = [base.__name__ for base in error.__bases__ if base is not ValueError]
        assert bases == [parent or "Exception"], name
        assert exit_code in (None, error.exit_code), name
        assert issubclass(error, ValueError) == is_value_error, name
