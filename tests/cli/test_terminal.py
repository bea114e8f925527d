"""What a model says has no power over a terminal."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from glimmer.cli.quantities import show_bytes, show_count
from glimmer.cli.terminal import printable


@given(st.text())
def test_no_control_character_but_new_line_and_tab_is_left(text: str) -> None:
    controls = {c for c in printable(text) if unicodedata.category(c) == "Cc"}
    assert controls <= {"\n", "\t"}


@given(st.text(), st.text())
def test_pieces_give_the_same_as_the_whole(a: str, b: str) -> None:
    assert printable(a) + printable(b) == printable(a + b)


def test_ordinary_text_stays() -> None:
    assert printable("a\tb\n你好 ❄") == "a\tb\n你好 ❄"


def test_what_is_shown_instead() -> None:
    assert printable("\x1b]0;title\x07 \x9b1m \x7f \r") == "␛]0;title␇ \\x9b1m ␡ "


def test_sizes_and_counts() -> None:
    assert [show_bytes(n) for n in (0, 999, 1000, 98_362_432, 2**30, 2**41)] == [
        "0 B",
        "999 B",
        "0.977 KiB",
        "93.8 MiB",
        "1 GiB",
        "2 TiB",
    ]
    assert [show_count(n) for n in (7, 49_152, 134_515_008, 9_400_000_000)] == [
        "7",
        "49,152",
        "135 M",
        "9.4 B",
    ]
