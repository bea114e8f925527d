"""Everything that differs between families, a folder each."""

from glimmer.families.family import Family, PackagedFile, Release, all_families, recognise

__all__ = ["Family", "PackagedFile", "Release", "all_families", "recognise"]
