"""What runs an artifact while it is measured: PyTorch's libraries in this process, llama.cpp and vLLM as servers, behind one interface."""

from __future__ import annotations

import re
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from itertools import count as counting
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from qlab.evaluate.bandwidth import synchronize
from qlab.evaluate.speed import Engine
from qlab.models.layout import class_of
from qlab.models.loading import load
from qlab.models.locating import kind_of
from qlab.models.opening import locate
from qlab.peers import autoawq, autogptq
from qlab.peers.families import check_experts
from qlab.plan.footprint import Footprint, packed_by_bitsandbytes
from qlab.serve.deployment import Deployment
from qlab.serve.runtimes import llamacpp, vllm
from qlab.serve.runtimes.llamacpp import post
from qlab.serve.runtimes.llamacpp_server import start
from qlab.serve.server import LINES, Server, free_port, on_free_port, serving
from qlab.support.errors import UserError
from qlab.support.memory import held_by_torch, held_here

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class InProcess:
    """A PyTorch model in this process."""

    label: str
    model: PreTrainedModel
    held = staticmethod(held_by_torch)

    @property
    def conditions(self) -> dict[str, str]:
        device = self.model.device
        kinds = Counter(type(module).__name__ for module in self.model.modules() if not list(module.children()))
        kernel = max((name for name in kinds if "Linear" in name), key=lambda name: kinds[name])
        floats = Counter[str]()  # by size: bitsandbytes keeps norms and biases wider than the rest
        for parameter in self.model.parameters():
            if parameter.dtype.is_floating_point:
                floats[str(parameter.dtype).removeprefix("torch.")] += parameter.numel()
        threads = str(torch.get_num_threads()) if device.type == "cpu" else "0"
        return {"device": device.type, "dtype": floats.most_common(1)[0][0], "kernel": kernel, "threads": threads}

    @torch.inference_mode()
    def read(self, ids: Sequence[int]) -> None:
        self.model(input_ids=torch.tensor([ids], device=self.model.device), use_cache=True, logits_to_keep=1)
        synchronize(str(self.model.device))

    @torch.inference_mode()
    def generate(self, first: int, count: int) -> None:
        step, cache = torch.tensor([[first]], device=self.model.device), None
        for _ in range(count):
            output = self.model(input_ids=step, past_key_values=cache, use_cache=True)
            step, cache = output.logits[:, -1:].argmax(-1), output.past_key_values
        synchronize(str(self.model.device))


@dataclass
class InLlamaCpp:
    """llama.cpp's server, in this process too, so that the memory it takes can be told from what was there before."""

    url: str
    threads: int
    server: Any
    label: str = "llama.cpp"
    held = staticmethod(held_here)

    @property
    def conditions(self) -> dict[str, str]:
        import xllamacpp

        features = re.findall(r"(\w+) = 1", xllamacpp.get_system_info())
        widest = [name for name in ("AMX_INT8", "AVX512_VNNI", "AVX512", "AVX2", "NEON", "CUDA") if name in features]
        return {"device": "cpu", "dtype": "8-bit activations", "kernel": "ggml " + " ".join(widest[:1]), "threads": str(self.threads)}

    def read(self, ids: Sequence[int]) -> float:
        return self._timings({"prompt": list(ids), "n_predict": 1})["prompt_ms"] / 1000

    def generate(self, first: int, count: int) -> float:
        return self._timings({"prompt": [first], "n_predict": count, "ignore_eos": True})["predicted_ms"] / 1000

    def _timings(self, body: dict[str, Any]) -> dict[str, Any]:
        return post(self.url, "/completion", body | {"cache_prompt": False})["timings"]


@dataclass
class InVLLM:
    """vLLM's server, in processes of its own."""

    server: Server
    threads: int
    label: str = "vLLM"
    salts: Iterator[int] = field(default_factory=counting)

    @property
    def conditions(self) -> dict[str, str]:
        log = self.server.tail(LINES)
        kernel, dtype = re.search(r"(\w+Kernel)\b", log), re.search(r"dtype=torch\.(\w+)", log)
        return {
            "device": "cuda" if torch.cuda.is_available() else "cpu", "dtype": dtype[1] if dtype else "float16",
            "kernel": kernel[1] if kernel else "vLLM's own choice", "threads": str(self.threads),
        }  # fmt: skip

    def read(self, ids: Sequence[int]) -> float | None:
        return self._timed({"prompt": list(ids), "max_tokens": 1}, "vllm:request_prefill_time_seconds_sum")

    def generate(self, first: int, count: int) -> float | None:
        seconds = self._timed({"prompt": [first], "max_tokens": count, "ignore_eos": True}, "vllm:request_decode_time_seconds_sum")
        return seconds and seconds * count / max(1, count - 1)  # its clock starts with the first token

    def _timed(self, body: dict[str, Any], metric: str) -> float | None:
        before = self._metric(metric)
        salted = body | {"model": self.server.model, "temperature": 0, "cache_salt": str(next(self.salts))}  # nothing read before helps
        post(self.server.url, "/v1/completions", salted)
        after = self._metric(metric)
        return after - before if before is not None and after is not None and after > before else None

    def _metric(self, name: str) -> float | None:
        with urllib.request.urlopen(f"{self.server.url}/metrics", timeout=30) as answer:
            found = re.search(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", answer.read().decode(), re.M)
        return float(found[1]) if found else None

    def held(self) -> int:
        return self.server.held_bytes()


@dataclass(frozen=True)
class Runner:
    """A runtime to measure in: the formats (`kinds`) it runs, whether it is here, and how a folder is opened for a context and a dtype.

    `prepare` loads the runtime's own code, so that what opening the folder then adds to what was `held` is the model's. A server in
    processes of its own holds nothing before it is there. What `starts_slowly` is started once, and timed there as often as the
    others in all their rounds.
    """

    label: str
    kinds: tuple[str, ...]
    install: str
    present: Callable[[], bool]
    open: Callable[[Path, int, str], AbstractContextManager[Engine]]
    prepare: Callable[[Path], None] = lambda folder: None
    held: Callable[[], int] = held_by_torch
    on_cpu: Callable[[Footprint], Footprint] = lambda model: model  # what of a model's own memory it makes on a CPU
    starts_slowly: bool = False
    unpacked: dict[str, float] = field(default_factory=dict)  # by device: bytes a weight that it takes for the layer at hand (measured)


def with_one_block(folder: Path, library: Callable[[], AbstractContextManager[Any]] = nullcontext) -> None:
    """Run a random model of this architecture, of one block and few tokens, with a library's code loaded."""
    config = AutoConfig.from_pretrained(folder)
    text = config.get_text_config()
    text.num_hidden_layers, text.vocab_size, text.pad_token_id = 1, 256, None
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:1]
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with library():
        engine = InProcess("", class_of(config, folder.name).from_config(config).eval())
        engine.read([1, 2, 3])
        engine.generate(1, 2)


@contextmanager
def in_transformers(folder: Path, context: int, dtype: str, label: str = "transformers") -> Iterator[Engine]:
    """FP16 on a GPU; on a CPU FP32, since most emulate half precision; or the `dtype` asked for."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    wanted = DTYPES.get(dtype, torch.float16 if device == "cuda" else torch.float32)
    source = locate(str(folder))
    if kind_of(folder) == "bitsandbytes":
        check_experts("bitsandbytes", source)
    yield InProcess(label, load(source, wanted, device, native=True))


@contextmanager
def in_library(library: Any, label: str, folder: Path, context: int, dtype: str) -> Iterator[Engine]:
    """AutoAWQ's and AutoGPTQ's own layers, in the dtype that they choose."""
    check_experts(label, locate(str(folder)))
    with library.running(folder) as model:
        yield InProcess(label, model)


@contextmanager
def in_llamacpp(folder: Path, context: int, dtype: str) -> Iterator[Engine]:
    threads, port = torch.get_num_threads(), free_port()
    yield InLlamaCpp(f"http://127.0.0.1:{port}", threads, start(Deployment(folder, "model").gguf, port, threads, context=context))


@contextmanager
def in_vllm(folder: Path, context: int, dtype: str) -> Iterator[Engine]:
    gpus, threads = int(torch.cuda.is_available()), torch.get_num_threads()
    with serving(vllm.VLLM(), on_free_port(folder, context, 1, gpus=gpus, threads=threads)) as server:
        yield InVLLM(server, threads)


def has(module: str) -> bool:
    return find_spec(module) is not None


RUNNERS = {
    "transformers": Runner(
        "transformers", ("dense",), "pip install transformers", partial(has, "transformers"), in_transformers, with_one_block,
        unpacked={"cuda": 0, "cpu": 0},
    ),
    "bitsandbytes": Runner(
        "transformers + bitsandbytes", ("bitsandbytes",), "pip install bitsandbytes", partial(has, "bitsandbytes"),
        partial(in_transformers, label="transformers + bitsandbytes"), with_one_block, on_cpu=packed_by_bitsandbytes,
        unpacked={"cuda": 4.3},
    ),
    "autoawq": Runner(
        "AutoAWQ", ("awq",), "pip install autoawq", partial(has, "awq"), partial(in_library, autoawq, "AutoAWQ"),
        partial(with_one_block, library=autoawq.imported), unpacked={"cuda": 0},
    ),
    "autogptq": Runner(
        "AutoGPTQ", ("gptq",), "pip install auto-gptq", partial(has, "auto_gptq"), partial(in_library, autogptq, "AutoGPTQ"),
        partial(with_one_block, library=autogptq.revived), unpacked={"cuda": 5.1},
    ),
    "gptqmodel": Runner(
        "GPTQModel", ("awq", "gptq"), "pip install --no-build-isolation gptqmodel==7.6.0 optimum==2.3.0 numpy==2.2.6",
        partial(has, "gptqmodel"), partial(in_transformers, label="GPTQModel"),
    ),
    "llamacpp": Runner("llama.cpp", ("gguf",), llamacpp.LlamaCpp().install, llamacpp.LlamaCpp().present, in_llamacpp, held=held_here),
    "vllm": Runner(
        "vLLM", ("awq", "gptq", "compressed-tensors"), vllm.VLLM().install, vllm.VLLM().present, in_vllm, held=int,
        on_cpu=vllm.VLLM().on_cpu, starts_slowly=True,
    ),
}  # fmt: skip


def runners_of(folder: Path, wanted: Sequence[str] = ()) -> list[str]:
    """The names of RUNNERS that run the format of `folder`, here or not; of the `wanted` ones, if any are named.

    Raises:
        UserError: a name that is none of them, or none of the wanted runs this format.
    """
    if unknown := [name for name in wanted if name not in RUNNERS]:
        raise UserError(f"no runtime {unknown[0]!r}: expected {', '.join(RUNNERS)}")
    kind = kind_of(folder)
    able = [name for name, runner in RUNNERS.items() if kind in runner.kinds]
    chosen = [name for name in able if not wanted or name in wanted]
    if not chosen:
        named = ", ".join(wanted) if wanted else "no runtime known here"
        raise UserError(f"{named}: none runs {folder.name}, which is {kind}" + (f"; {', '.join(able)} would" if able else ""))
    return chosen
