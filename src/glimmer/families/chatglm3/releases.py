"""Published checkpoints of ChatGLM3.

The config of the 8K release is the published one; the rope_ratio of the others and the names on the
hubs are from memory.
"""

from __future__ import annotations

from typing import Any

from glimmer.families.chatglm2.releases import CONFIG
from glimmer.families.release import HubRepository, Licence, Release

LICENCE = Licence(
    "ChatGLM3-6B License",
    "https://github.com/THUDM/ChatGLM3/blob/main/MODEL_LICENSE",
    "Free for research, and for business after registration; no military or illegal use.",
    False,
)
_CONFIG: dict[str, Any] = {**CONFIG, "_name_or_path": "THUDM/chatglm3-6b", "seq_length": 8192}


def _release(name: str, context_length: int, **config: Any) -> Release:
    return Release(
        name=name,
        title=name.replace("chatglm", "ChatGLM").replace("-6b", "-6B"),
        licence=LICENCE,
        context_length=context_length,
        source=HubRepository(f"zai-org/{name}", f"ZhipuAI/{name}", (f"THUDM/{name}",)),
        config={**_CONFIG, "seq_length": context_length, **config},
    )


RELEASES = (
    _release("chatglm3-6b", 8192),
    _release("chatglm3-6b-base", 32768),
    _release("chatglm3-6b-32k", 32768, rope_ratio=50),
    _release("chatglm3-6b-128k", 131072, rope_ratio=500),
)
