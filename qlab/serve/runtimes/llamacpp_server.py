"""llama.cpp's server, in this process or as one of its own. No PyTorch here: that would cost the server seconds and 360 MB."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import Any

KEY = "LLAMA_API_KEY"  # where llama-server looks for it, and so do we


CACHE_TYPES = {"f16": "GGML_TYPE_F16", "q8_0": "GGML_TYPE_Q8_0", "q4_0": "GGML_TYPE_Q4_0"}  # by the names of qlab.plan.plan.CACHES


def start(
    gguf: Path, port: int, threads: int, context: int, host: str = "127.0.0.1", name: str = "", sequences: int = 1, gpu_layers: int = 0,
    cache: str = "f16",
) -> Any:  # fmt: skip
    """The server in this process; it serves for as long as the object lives. Each of `sequences` has `context` tokens, kept in `cache`."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(gguf)
    parameters.hostnames, parameters.port = [host], port
    parameters.n_ctx, parameters.n_parallel = context * sequences, sequences
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    parameters.n_gpu_layers = gpu_layers
    parameters.cache_type_k = parameters.cache_type_v = getattr(xllamacpp.ggml_type, CACHE_TYPES[cache])
    parameters.ui, parameters.offline = False, True
    if name:
        parameters.model_alias = {name}
    if key := os.environ.get(KEY):
        parameters.api_keys = [key]
    return xllamacpp.Server(parameters)


def main() -> None:
    """The child: serve until told to stop."""
    parser = argparse.ArgumentParser(description="serve one GGUF file with llama.cpp")
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--name", default="")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--sequences", type=int, default=1)
    parser.add_argument("--gpu-layers", type=int, default=0)
    parser.add_argument("--cache", choices=CACHE_TYPES, default="f16")
    o = parser.parse_args()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})  # before the server has threads of its own
    try:
        server = start(o.gguf, o.port, o.threads, o.context, o.host, o.name, o.sequences, o.gpu_layers, o.cache)
    except (RuntimeError, OverflowError) as error:
        sys.exit(f"llama.cpp cannot serve {o.gguf.name}: {error} The file may be damaged, or memory too small for weights and cache.")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    del server


if __name__ == "__main__":
    main()
