"""Everything that differs between families, a folder each."""

from glimmer.families.family import (
    Chat,
    Family,
    PackagedFile,
    Release,
    all_families,
    recognise,
)

__all__ = ["Chat", "Family", "PackagedFile", "Release", "all_families", "recognise"]
