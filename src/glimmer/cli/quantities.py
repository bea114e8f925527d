"""How sizes and counts are shown to people."""

from __future__ import annotations


def show_bytes(size: int) -> str:
    """Three digits and a binary unit: 93.8 MiB."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} TiB"


def show_count(count: int) -> str:
    """As it is below a million, then three digits: 135 M, 9.4 B."""
    if count < 1_000_000:
        return f"{count:,}"
    if count < 1_000_000_000:
        return f"{count / 1e6:.3g} M"
    return f"{count / 1e9:.3g} B"
