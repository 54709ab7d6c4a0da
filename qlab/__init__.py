"""qlab: learn, check and carry out the quantization of large language models."""

import os
from pathlib import Path

__version__ = "0.2.0"

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
EMBEDDED = DATA / "embedded"

# qlab's users keep their data in house: every library that counts its users is told not to, before any is imported.
# A value that the user has set stays.
for _variable, _value in {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "DISABLE_TELEMETRY": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # datasets reports even the reading of a local file, to a server that counts
    "ANONYMIZED_TELEMETRY": "False",
    "BNB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",  # papermill forks after tokenizers have started threads
}.items():
    os.environ.setdefault(_variable, _value)

# Servers on this machine are asked directly: a proxy of the environment would be sent their keys, and cannot reach them.
_direct = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
if _direct.strip() != "*":
    for _variable in ("no_proxy", "NO_PROXY"):
        os.environ[_variable] = ",".join(dict.fromkeys([*filter(None, _direct.split(",")), "127.0.0.1", "localhost", "::1"]))

# PyTorch's threads (libgomp's) wait for each other in a loop that keeps their core busy: by default for some 15 ms, which is longer than
# the system lets a program run at a time. If another program has the core that the last thread needs, all this time is lost, at each
# operation. With this count they give up their core after half a millisecond. It is read when PyTorch is loaded: who imports torch before
# qlab has the default, unless it is set in the environment.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
