"""Everything that differs between families, a folder each."""

from glimmer.families.family import BlankTexts, Chat, Family, all_families, recognise
from glimmer.families.release import HubRepository, Licence, PackagedFile, Release

__all__ = [
    "BlankTexts",
    "Chat",
    "Family",
    "HubRepository",
    "Licence",
    "PackagedFile",
    "Release",
    "all_families",
    "recognise",
]
