"""Models: a Hugging Face folder, a hub id, an artifact, or `embedded`, opened for measuring.

`locate` turns a name into a folder and checks that it can be trusted; `load` makes a transformers model of it. AWQ and
GPTQ checkpoints are unpacked into plain weights, GGUF files dequantized: quality is then measured by the same
arithmetic for every format, on any machine. How fast a runtime serves them is another question (qlab.evaluate.speed).
"""

from __future__ import annotations

import hashlib
import json
import re
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from gguf import MODEL_ARCH_NAMES
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from qlab.formats.dense import dense_state
from qlab.formats.gguf.header import read_header
from qlab.formats.gguf.metadata import ARCHITECTURES
from qlab.models.named import NAMES, named_folder
from qlab.support.errors import UserError
from qlab.support.progress import bars_on_terminals

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
HUB_FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")  # no pickles, no Python
WHOLE = 256 << 20  # a weight file up to this many bytes is in the fingerprint whole; of a larger one, so many samples
SAMPLES, SAMPLE_BYTES = 1024, 65536
UNOPENED = (ValueError, KeyError, TypeError, StrictDataclassError)  # what transformers raises of a configuration that makes no sense


@dataclass(frozen=True)
class Source:
    """A model found and checked: the name it was asked by, its folder, and a hash of what it holds."""

    name: str
    path: Path
    fingerprint: str

    @property
    def config(self) -> dict[str, Any]:
        """config.json; empty for a GGUF folder, which carries its configuration in the file."""
        file = self.path / "config.json"
        return read_json(file) if file.exists() else {}


def locate(name: str, weights: bool = True) -> Source:
    """Find the model that `name` means and check its files, without loading it; without `weights`, a config.json is enough.

    Raises:
        UserError: no such folder or hub id, a named model that was not fetched, no network, no weights, pickled weights, or a damaged file.
    """
    if (named := named_folder(name)) is not None:
        folder, shown = named, name
    elif name and Path(name).expanduser().is_dir():
        folder = Path(name).expanduser().resolve()
        shown = folder.name
    elif HUB_ID.fullmatch(name) and not name.startswith((".", "~")):
        folder, shown = download(name), name
    else:
        raise UserError(
            f"no model {name!r}: expected {', '.join(map(repr, NAMES))}, a folder with config.json and *.safetensors, "
            "or a hub id such as Qwen/Qwen2.5-0.5B"
        )
    found = check_weights(folder) if weights or weight_files(folder) else []
    return Source(shown, folder, fingerprint(folder, found))


def download(hub_id: str) -> Path:
    """The local snapshot of a hub model: from the cache where it is complete, else fetched, safetensors only."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(HUB_FILES)))
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(
            f"the hub has no model {hub_id!r} that you may read, and there is no such folder; "
            "check the spelling, or log in with 'hf auth login'"
        ) from error
    except Exception as error:  # the client raises many kinds when the network is away; all mean the same here
        raise UserError(
            f"could not fetch {hub_id!r} from the hub ({type(error).__name__}), and it is not in the local cache; "
            "there is no folder of that name either. Without a network, give a folder: --model /path/to/model"
        ) from error


def check_weights(folder: Path) -> list[Path]:
    """The weight files of a model folder, each whole.

    Raises:
        UserError: none, pickled ones only, or one that is damaged.
    """
    if gguf := sorted(folder.glob("*.gguf")):
        return gguf
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder.name}/ has no config.json: it is not a Hugging Face model folder")
    weights = weight_files(folder)
    if not weights:
        pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
        hint = f" ({pickled[0]} is a pickle, which can run code: convert it to safetensors first)" if pickled else ""
        raise UserError(f"{folder.name}/ has no weights: expected *.safetensors{hint}")
    if missing := [file.name for file in weights if not file.is_file()]:
        raise UserError(f"{folder.name}/ lacks {len(missing)} of {len(weights)} weight files: {missing[0]} …; download it again")
    for file in weights:
        try:
            with safe_open(file, "pt") as opened:
                opened.keys()
        except (SafetensorError, OSError) as error:
            raise UserError(f"{folder.name}/{file.name} is damaged ({error}); download or copy it again") from error
    return weights


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the model: those that the index names, or model.safetensors, or all there are.

    Raises:
        UserError: the index cannot be read.
    """
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.exists():
        return [folder / Path(name).name for name in sorted(set(read_json(index)["weight_map"].values()))]  # nothing outside the folder
    return [single] if single.exists() else sorted(folder.glob("*.safetensors"))


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: it is damaged.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file.parent.name}/{file.name} is not JSON ({error}); download or copy it again") from error
    if not isinstance(found, dict):
        raise UserError(f"{file.parent.name}/{file.name} holds no JSON object; download or copy it again")
    return found


def kind_of(folder: Path) -> str:
    """The format of the model in `folder`: gguf, awq, gptq, bitsandbytes, or dense where nothing is quantized."""
    if folder.suffix == ".gguf" or any(folder.glob("*.gguf")):
        return "gguf"
    config: dict[str, Any] = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    return config.get("quantization_config", {}).get("quant_method") or "dense"


def fingerprint(folder: Path, weights: list[Path]) -> str:
    """A hash of configuration, tokenizer and weights; of files over 256 MiB only samples, so that a 70B takes seconds, not minutes."""
    digest = hashlib.sha256()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model"):
        if (folder / name).exists():
            digest.update((folder / name).read_bytes())
    for file in weights:
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}".encode())
        with file.open("rb") as stream:
            if size <= WHOLE:
                digest.update(stream.read())
                continue
            for sample in range(SAMPLES):
                stream.seek(max(0, size - SAMPLE_BYTES) * sample // (SAMPLES - 1))
                digest.update(stream.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def check_device(name: str) -> None:
    """See that PyTorch can compute on the device `name`, such as cpu, cuda, cuda:1.

    Raises:
        UserError: it cannot.
    """
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:  # PyTorch asserts that it was compiled with CUDA
        reason = str(error).splitlines()[0]
        raise UserError(f"no device {name!r} here: {reason}. Expected cpu, or cuda on a machine with a GPU (see qlab doctor)") from error


def check_length(source: Source, length: int, option: str) -> None:
    """See that the model was made for texts of so many tokens, which `option` asks for.

    Raises:
        UserError: it was not, or they are fewer than two.
    """
    longest = source.config.get("max_position_embeddings", length)
    if not 2 <= length <= longest:
        raise UserError(f"{option} is {length}: expected 2 to {longest}, the longest context of {source.name}")


def load(source: Source, dtype: torch.dtype = torch.float32, device: str = "cpu", native: bool = False) -> PreTrainedModel:
    """The model of a folder or artifact, in evaluation mode, its weights in `dtype` on `device`.

    Quantized checkpoints become plain weights, unless `native`: a bitsandbytes one then stays in four bits, as its runtime keeps it.

    Raises:
        UserError: a format qlab does not read, or an architecture transformers does not know.
    """
    if gguf := sorted(source.path.glob("*.gguf")):
        with bars_on_terminals():
            model = AutoModelForCausalLM.from_pretrained(source.path, config=gguf_config(gguf[0]), gguf_file=gguf[0].name, dtype=dtype)
        return model.eval().to(device)
    quantization = source.config.get("quantization_config")
    try:
        if quantization is None or (native and quantization.get("quant_method") == "bitsandbytes"):
            model = AutoModelForCausalLM.from_pretrained(
                source.path, dtype=dtype, device_map=device, trust_remote_code=False, use_safetensors=True
            )
        else:
            config = AutoConfig.from_pretrained(source.path, trust_remote_code=False)
            del config.quantization_config
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
            fill(model, dense_state(source.path, quantization))
    except UNOPENED as error:
        raise UserError(f"transformers cannot open {source.name}: {error}") from error
    return model.eval().to(device)


def gguf_config(file: Path) -> PreTrainedConfig:
    """The configuration in a GGUF file, with what transformers leaves out of it: the width of a head, and which layers have biases.

    Without these it takes a family's usual width, and drops the biases in silence.

    Raises:
        UserError: the file is no GGUF file, not whole, or of an architecture that transformers does not know.
        OSError: it cannot be read.
    """
    known = file.stat()
    try:
        return deepcopy(_gguf_config(file.absolute(), known.st_size, known.st_mtime_ns))
    except UNOPENED as error:
        raise UserError(f"transformers cannot open {file.name}: {error}") from error


@lru_cache(maxsize=8)  # transformers makes objects of the whole vocabulary for it
def _gguf_config(file: Path, size: int, changed: int) -> PreTrainedConfig:
    header = read_header(file)
    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    kind = header.settings["general.architecture"]
    if kind in {MODEL_ARCH_NAMES[written] for written in ARCHITECTURES.values()}:  # elsewhere a head may have several widths
        if (width := header.settings.get(f"{kind}.attention.key_length")) is not None:
            config.head_dim = int(width)
        for option, tensor in (("attention_bias", "blk.0.attn_output.bias"), ("mlp_bias", "blk.0.ffn_down.bias")):
            if tensor in header.tensors:
                setattr(config, option, True)
    return config


def fill(model: PreTrainedModel, state: dict[str, torch.Tensor]) -> None:
    """Put every weight of `state` into `model`, and insist that none is left over or missing but a tied head.

    Raises:
        UserError: names that do not match.
    """
    missing, unexpected = model.load_state_dict(state, strict=False)
    model.tie_weights()
    # AutoGPTQ gives every layer a bias, of zeros where the model has none.
    unexpected = [name for name in unexpected if not (name.endswith(".bias") and not state[name].any())]
    absent = [name for name in missing if not (name == "lm_head.weight" and model.config.tie_word_embeddings)]
    if absent or unexpected:
        raise UserError(f"the checkpoint does not fit its configuration: missing {absent[:3]}, unexpected {unexpected[:3]}")


def load_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """The tokenizer that lies with the model: tokenizer.json to the letter, where transformers would bring its own rules for a family."""
    if (source.path / "tokenizer.json").exists():
        return PreTrainedTokenizerFast.from_pretrained(source.path)
    if gguf := sorted(source.path.glob("*.gguf")):
        return AutoTokenizer.from_pretrained(source.path, gguf_file=gguf[0].name)
    return AutoTokenizer.from_pretrained(source.path, trust_remote_code=False)


def decoder_layers(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """The linear layers inside the decoder blocks, by name: what quantizers quantize. Embedding and head are not among them."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear) and ".layers." in f".{name}."}
