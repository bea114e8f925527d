"""Published checkpoints."""

from glimmer.families.family import Release

RELEASES: tuple[Release, ...] = ()
