"""A model opened once: where it lies, its configuration, what its decoder consists of, and its stored weights as plain ones.

`locate` makes the one object that check, budget, walk, artifact and evaluation are handed; all that is special about a family or about
a way to store weights is known below this point and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from qlab.models.checkpoint import Checkpoint, open_checkpoint, open_gguf
from qlab.models.configuration import quantization_of, read_config
from qlab.models.experts import experts_per_token
from qlab.models.gguf import gguf_config, unpacked_companions
from qlab.models.layout import Layout, configuration_from, configuration_of, empty_model, layout_of, opened_layout
from qlab.models.locating import check_folder, checked_files, find_folder, fingerprint, is_hub_id, weight_files
from qlab.models.naming import joined, sources
from qlab.support.errors import UserError
from qlab.support.wording import Sentence, first_and_number

CALLED_OTHERWISE = ("num_hidden_layers", "num_attention_heads")  # by BLOOM, GPT-2 and others of their time
# Tensors that old checkpoints hold and the model computes itself.
COMPUTED = re.compile(r".*(rotary_emb\.inv_freq|\.masked_bias|\.attn\.bias|\.attention\.bias)")


@dataclass(frozen=True)
class OpenedModel:
    """A model that was found: the name it was asked by, its folder (or GGUF file), and a hash of what it holds.

    What is derived from these is computed when it is first asked for, and kept. Processes are handed the model as it is. `on_paper`: the
    weights are not here, or not wanted; their shapes are those of the configuration.
    """

    name: str
    path: Path
    fingerprint: str
    on_paper: bool = False

    @cached_property
    def folder(self) -> Path:
        """The folder with configuration and tokenizer; of a GGUF file without a tokenizer beside it, one written from its header.

        Raises:
            UserError: the file's tokenizer is of a kind that qlab does not read.
        """
        beside = self.path.is_dir() and any((self.path / name).exists() for name in ("tokenizer.json", "tokenizer.model"))
        return self.path if beside or not self.gguf else unpacked_companions(self.path)

    @property
    def files(self) -> list[Path]:
        """The files with the weights; empty where there is only a configuration."""
        return [] if self.on_paper else weight_files(self.path)

    @property
    def gguf(self) -> Path | None:
        """The (first) GGUF file, where the model is one."""
        files = self.files
        return files[0] if files and files[0].suffix == ".gguf" else None

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json; for a GGUF file what its header says, in the same words."""
        if self.gguf:
            return gguf_config(self.gguf)
        return read_config(self.folder)

    @cached_property
    def _configuration(self) -> PreTrainedConfig:
        config = self.config  # first: its sizes are checked
        found = configuration_from(config, self.name) if self.gguf else configuration_of(self.folder, self.name)
        if hasattr(found, "quantization_config"):
            del found.quantization_config  # how weights are stored is the checkpoint's business
        return found

    @property
    def configuration(self) -> PreTrainedConfig:
        """transformers' configuration, a copy for whoever asks, without a word on quantization.

        Raises:
            UserError: transformers does not know its kind, or a value makes no sense.
        """
        return deepcopy(self._configuration)

    @cached_property
    def text_config(self) -> dict[str, Any]:
        """config.json of the part that reads text, with what the class takes where it says nothing, or null; its blocks and heads under
        their usual names too."""
        stated, taken = self.config.get("text_config") or self.config, self._configuration.get_text_config().to_dict()
        tied = {"tie_word_embeddings": self.layout.embedding == self.layout.head}
        called = self._configuration.get_text_config().attribute_map
        taken |= {name: taken[own] for name in CALLED_OTHERWISE if (own := called.get(name)) in taken}
        return taken | {name: value for name, value in stated.items() if value is not None or name not in taken} | tied

    @cached_property
    def layout(self) -> Layout:
        """What its decoder consists of.

        Raises:
            UserError: as opened_layout.
        """
        return opened_layout(self.configuration, self.name)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """Its stored weights as plain ones; of a folder that holds a configuration alone, those that it describes, on paper."""
        if not self.files:
            return Checkpoint.on_paper(self.layout.shapes)
        if self.gguf:
            found = open_gguf(self.path, self.text_config, self.layout.shapes)
        else:
            found = open_checkpoint(self.path, quantization_of(self.config) or None)
        if all(name in found.shapes for name in self.layout.shapes):
            return found
        model = empty_model(self.configuration, self.name)
        found = found.called(sources(model, self.layout, found.shapes), self.layout.shapes)
        of_several = joined(model, self.layout, found.shapes)
        return found.joining({name: each.parts for name, each in of_several.items() if each.by_rows and name not in self.layout.linear})

    @property
    def trained_in(self) -> torch.dtype:
        """The half precision that its configuration names, or where it names none, its files hold: BF16, whose range some models need, or
        else FP16."""
        texts = self.config.get("text_config") or {}
        named = [name for config in (self.config, texts) for key in ("dtype", "torch_dtype") if (name := config.get(key))]
        kept_in = ["bfloat16"] if "BF16" in self.checkpoint.description.split() else []
        return torch.bfloat16 if "bfloat16" in (named or kept_in) else torch.float16

    @property
    def longest(self) -> int | None:
        """The longest context it was made for, where the configuration says."""
        found = getattr(self._configuration.get_text_config(), "max_position_embeddings", None)
        return found if isinstance(found, int) else None

    @property
    def not_walked(self) -> str:
        """Why its blocks cannot be run one at a time by hidden states alone, in a sentence; empty where they can, as nearly all."""
        text = self._configuration.get_text_config()
        if shared := getattr(text, "num_kv_shared_layers", 0):
            return (
                f"the last {shared} blocks of {self.name} read keys and values of blocks before them, and qlab quantizes a block at a time"
            )
        if getattr(text, "hidden_size_per_layer_input", 0):
            return f"each block of {self.name} reads an embedding of the text of its own, and qlab passes hidden states alone to a block"
        return ""

    @property
    def experts_per_token(self) -> int:
        """How many experts of a block a token is given; 0 where there are none, or where the configuration has another word for it."""
        return experts_per_token(self._configuration.get_text_config())

    def check_complete(self) -> list[str]:
        """See that the checkpoint holds every tensor of the architecture, in its shape, and nothing that would change its function.

        Returns the names of tensors that lie beside the model and are left out (a value head, another copy of a tied head).

        Raises:
            UserError: a tensor is missing, has another shape, or belongs to a block but not to the architecture.
        """
        wanted, stored = self.layout.shapes, self.checkpoint.shapes
        if missing := [name for name in wanted if name not in stored]:
            raise UserError(self.lacking(missing))
        for name, shape in wanted.items():
            if tuple(stored[name]) != shape:
                raise UserError(f"{name} of {self.name} is {list(stored[name])}, its configuration asks for {list(shape)}")
        extra = [name for name in stored if name not in wanted and not COMPUTED.fullmatch(name)]
        strange = [name for name in extra if self.layout.inside(name) and not self._beyond(name) and not self._zero_bias(name)]
        if strange:
            raise UserError(
                f"the checkpoint of {self.name} holds {strange[0]} and {len(strange) - 1} more tensors in its blocks that a model of type "
                f"{self._configuration.model_type} does not have: its configuration does not describe these weights"
            )
        return [name for name in extra if not self._zero_bias(name)]

    def lacking(self, missing: Collection[str]) -> str:
        """What to say of tensors that the architecture wants and the checkpoint does not have."""
        names, layout = sorted(missing), self.layout
        if names == ["lm_head.weight"] or (layout.head in missing and len(missing) == 1):
            return (
                f"the checkpoint of {self.name} has no {layout.head}, and tie_word_embeddings is false in its config.json: set it to true "
                "if the output head is the embedding, or give a checkpoint with a head"
            )
        joinable = joined(empty_model(self.configuration, self.name), layout, self.checkpoint.shapes)
        if apart := next((name for name in names if name in joinable), ""):
            parts = joinable[apart].parts
            return (
                f"the checkpoint of {self.name} holds {apart} in {len(parts)} tensors ({parts[0]} is one), which transformers joins and "
                "qlab does not"
            )
        return f"the checkpoint of {self.name} lacks {names[0]} and {len(names) - 1} more that its configuration asks for"

    def _beyond(self, name: str) -> bool:
        """Whether a tensor lies in a block behind the last that the configuration names as one for predicting several tokens at once."""
        number = name.removeprefix(f"{self.layout.blocks}.").partition(".")[0]
        more = getattr(self._configuration.get_text_config(), "num_nextn_predict_layers", 0) or 0
        return number.isdecimal() and self.layout.count <= int(number) < self.layout.count + more

    def _zero_bias(self, name: str) -> bool:
        """Whether it is a bias of zeros, which AutoGPTQ gives every layer."""
        return name.endswith(".bias") and not self.checkpoint.read(name).any()


def locate(name: str, weights: bool = True) -> OpenedModel:
    """Find the model that `name` means and check its files, without loading it; without `weights`, a config.json is enough, and of a hub
    id no more is fetched than that and the tokenizer.

    Raises:
        UserError: no such folder or hub id, no network, no weights, pickled weights, or a damaged file.
    """
    shown, place = find_folder(name, weights)
    if place.is_dir():
        check_folder(place)
    files = weight_files(place)
    half_fetched = not weights and is_hub_id(name) and not all(file.is_file() for file in files)
    found = checked_files(place) if weights or (files and not half_fetched) else []
    return OpenedModel(shown, place, fingerprint(place if place.is_dir() else None, found), on_paper=not found)


def already_rounded(source: OpenedModel) -> Sentence:
    """What it means for figures that a model's weights are stored quantized."""
    text = "{name} is stored as {stored}: every figure is a distance to these weights, which were rounded before"
    return Sentence(text, name=source.name, stored=source.checkpoint.description)


def left_out(source: OpenedModel, names: Sequence[str]) -> str:
    """What to say of tensors in its checkpoint that lie beside the model: one sentence."""
    return f"left out of {source.name}, since models of its type do not have them: {first_and_number(names)}"


def found_device(name: str) -> str:
    """The device `name`, such as cpu, cuda, cuda:1, once it is known that PyTorch can compute on it; "auto": a GPU where there is one.

    Raises:
        UserError: it cannot.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, ImportError) as error:  # it asserts that it was compiled with CUDA, and imports others' parts
        reason = str(error).splitlines()[0][:120]
        raise UserError(
            f"no device {name[:40]!r} here: {reason}. Expected auto, cpu, or cuda on a machine with a GPU (see qlab doctor)"
        ) from error
    return name


def found_devices(names: str) -> list[str]:
    """The devices of a list such as cuda:0,cuda:1, each as `found_device` finds it; "all": every GPU.

    Raises:
        UserError: one is not there, or they are of two kinds, which round differently.
    """
    if names == "all":
        if not torch.cuda.is_available():
            raise UserError("--devices all: PyTorch finds no GPU here (see qlab doctor); leave it out to compute on the CPU")
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    found = [found_device(name.strip()) for name in names.split(",")]
    if len({torch.device(name).type for name in found}) > 1:
        raise UserError(f"devices {names[:80]!r}: expected all of one kind, such as cuda:0,cuda:1, since CPU and GPU round differently")
    return found


def check_length(source: OpenedModel, length: int, option: str) -> None:
    """See that the model was made for texts of so many tokens, which `option` asks for.

    Raises:
        UserError: it was not, or they are fewer than two.
    """
    longest = source.longest or length
    if not 2 <= length <= longest:
        raise UserError(f"{option} is {length}: expected 2 to {longest}, the longest context of {source.name}")


def decoder_layers(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """The linear layers inside the decoder blocks, by name: what quantizers quantize. Embedding and head are not among them."""
    wanted = {name.removesuffix(".weight") for name in layout_of(model, model.config.model_type).linear}
    return {name: module for name, module in model.named_modules() if name in wanted and isinstance(module, nn.Linear)}
