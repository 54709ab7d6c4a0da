"""Adapters from anywhere: what is not one of this model is one message, soon, and merges nothing."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from qlab.models.loading import load
from qlab.models.opening import OpenedModel
from qlab.release.adapter import CONFIG, WEIGHTS, merge, read_adapter
from qlab.release.adapter_config import AdapterConfig, lora_config
from qlab.support.errors import UserError

SLOW = "(a|a)*" * 30 + "$"  # a regular expression that takes for ever on a name of many a


@pytest.fixture(scope="module")
def adapter(tiny: OpenedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good one, as peft saves it."""
    folder = tmp_path_factory.mktemp("adapters") / "good"
    model: Any = get_peft_model(load(tiny), LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))
    model.save_pretrained(str(folder))
    return folder


def changed(adapter: Path, folder: Path, config: dict[str, Any], tensors: dict[str, Tensor | None] | None = None) -> Path:
    """The adapter with some options and tensors exchanged; None takes a tensor away."""
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text(json.dumps(json.loads((adapter / CONFIG).read_text()) | config))
    found = load_file(adapter / WEIGHTS) | (tensors or {})
    save_file({name: tensor for name, tensor in found.items() if tensor is not None}, folder / WEIGHTS)
    return folder


def key(end: str) -> str:
    return f"base_model.model.model.layers.0.self_attn.q_proj.{end}"


def test_a_good_adapter_is_read_with_its_options_and_merged(adapter: Path, tiny: OpenedModel, tmp_path: Path) -> None:
    config, tensors = read_adapter(adapter)
    assert (config.r, config.lora_alpha, config.target_modules) == (4, 8, {"q_proj", "down_proj"})
    assert len(tensors) == 8
    # Written by a newer peft, with options that this one does not know, and with what says only how it was trained.
    other = {"lora_dropout": 0.1, "init_lora_weights": "gaussian", "base_model_name_or_path": "/x", "an_option_of_tomorrow": 3}
    merge(tiny, changed(adapter, tmp_path / "a", other), tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").is_file()


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "rank of text": ({"r": "four"}, "r: "),
    "no rank": ({"r": None}, "r: "),
    "rank true": ({"r": True}, "r: "),
    "rank 0": ({"r": 0}, "r: "),
    "rank of terabytes": ({"r": 10**12}, "r: "),
    "a higher rank than the weights": ({"r": 64}, "says rank 64, and the weights have 4"),
    "a higher rank somewhere": ({"rank_pattern": {"q_proj": 60000}}, "says rank 60000"),
    "alpha of text": ({"lora_alpha": "8"}, "lora_alpha: "),
    "alpha not finite": ({"lora_alpha": math.inf}, "lora_alpha: "),
    "alpha not a number": ({"lora_alpha": math.nan}, "lora_alpha: "),
    "alpha not finite somewhere": ({"alpha_pattern": {"q_proj": math.inf}}, "alpha_pattern.q_proj"),
    "a slow expression": ({"target_modules": SLOW}, "target_modules"),
    "a slow expression in a list": ({"target_modules": [SLOW]}, "target_modules"),
    "a slow expression saved": ({"modules_to_save": [SLOW]}, "modules_to_save"),
    "a slow expression excluded": ({"exclude_modules": SLOW}, "exclude_modules"),
    "a slow expression for ranks": ({"rank_pattern": {SLOW: 4}}, "rank_pattern"),
    "a slow expression for blocks": ({"layers_pattern": SLOW, "layers_to_transform": [0]}, "layers_pattern"),
    "no layers": ({"target_modules": None}, "target_modules"),
    "a million layers": ({"target_modules": ["q_proj"] * 10**6}, "target_modules"),
    "layers that are no names": ({"target_modules": [1, {}]}, "target_modules"),
    "a layer that was not saved": ({"modules_to_save": ["lm_head"]}, "lm_head was saved with the adapter, and its weights lack it"),
    "a layer with an adapter as saved": ({"modules_to_save": ["q_proj"]}, "q_proj was saved with the adapter"),
    "blocks doubled": ({"layer_replication": [[0, 10**6]]}, "layer_replication"),
    "blocks that are no numbers": ({"layers_to_transform": ["x"]}, "layers_to_transform"),
    "weights of its own making": ({"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}}, "init_lora_weights"),
    "another library": ({"megatron_config": {"a": 1}, "megatron_core": "os"}, "megatron_config"),
    "other parameters": ({"target_parameters": ["a.b"]}, "target_parameters"),
    "tokens": ({"trainable_token_indices": [1]}, "trainable_token_indices"),
    "bias of nothing": ({"bias": "some"}, "bias"),
    "another kind": ({"peft_type": "IA3"}, "only LORA is merged"),
    "a kind of kilobytes": ({"peft_type": "x" * 5000}, "only LORA is merged"),
    "a number of 5000 digits": ({"r": 10**4000}, "r: "),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_that_cannot_be_is_one_short_message(name: str, adapter: Path, tmp_path: Path) -> None:
    config, said = CONFIGS[name]
    folder, started = changed(adapter, tmp_path / "a", config), time.monotonic()
    with pytest.raises(UserError) as refused:
        read_adapter(folder)
    assert said in str(refused.value)
    assert len(str(refused.value)) < 500
    assert time.monotonic() - started < 120


TENSORS: dict[str, tuple[dict[str, Any], str]] = {
    "of another width": ({key("lora_A.weight"): torch.ones(4, 100)}, "is no adapter of tiny"),
    "of another rank": ({key("lora_B.weight"): torch.ones(256, 3)}, "is no adapter of tiny"),
    "one is missing": ({key("lora_A.weight"): None}, "has no counterpart"),
    "of a layer that is not there": ({key("lora_A.weight").replace("layers.0", "layers.7"): torch.ones(4, 256)}, "has no counterpart"),
    "a saved layer that is not there": ({"base_model.model.nowhere.weight": torch.ones(4)}, "has no counterpart"),
    "infinite": ({key("lora_A.weight"): torch.full((4, 256), math.inf)}, "not finite"),
    "whole numbers": ({key("lora_A.weight"): torch.ones(4, 256, dtype=torch.int32)}, "not floats"),
    "too large for FP16": ({key("lora_A.weight"): torch.full((4, 256), 1e4), key("lora_B.weight"): torch.full((256, 4), 1e4)}, "q_proj"),
    "without dimensions": ({key("lora_A.weight"): torch.ones(())}, "is no adapter of tiny"),
}  # fmt: skip


@pytest.mark.parametrize("name", TENSORS)
def test_weights_that_do_not_fit_are_one_message(name: str, adapter: Path, tiny: OpenedModel, tmp_path: Path) -> None:
    tensors, said = TENSORS[name]
    with pytest.raises(UserError) as refused:
        merge(tiny, changed(adapter, tmp_path / "a", {}, tensors), tmp_path / "out")
    assert said in str(refused.value)
    assert len(str(refused.value)) < 600
    assert not (tmp_path / "out").exists()


def test_a_part_that_was_said_to_be_saved_and_was_not_is_one_message(adapter: Path, tiny: OpenedModel, tmp_path: Path) -> None:
    for layer in ("model", "layers"):  # parts of the names of all tensors
        with pytest.raises(UserError):
            merge(tiny, changed(adapter, tmp_path / layer, {"modules_to_save": [layer]}), tmp_path / "out")


def pipe(file: Path) -> None:
    os.mkfifo(file)


def loop(file: Path) -> None:
    file.symlink_to(file)


FILES: list[tuple[str, str, Callable[[Path], Any]]] = [
    (name, *case)
    for name in (CONFIG, WEIGHTS)
    for case in [("none", lambda file: None), ("empty", Path.touch), ("folder", Path.mkdir), ("pipe", pipe), ("loop", loop),
                 ("text", lambda file: file.write_text("mine")), ("deep", lambda file: file.write_text("[" * 10**6)),
                 ("list", lambda file: file.write_text("[]")), ("noise", lambda file: file.write_bytes(b"\xff" * 1000))]
]  # fmt: skip


@pytest.mark.parametrize(("name", "kind", "make"), FILES, ids=[f"{name}-{kind}" for name, kind, _ in FILES])
def test_a_file_that_is_none_is_one_message(name: str, kind: str, make: Callable[[Path], Any], adapter: Path, tmp_path: Path) -> None:
    folder = changed(adapter, tmp_path / "a", {})
    (folder / name).unlink()
    make(folder / name)
    with pytest.raises(UserError) as refused:
        read_adapter(folder)
    assert len(str(refused.value)) < 400


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["q_proj", SLOW, 10**30, 4]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.just("q_proj"), inner, max_size=3),
    max_leaves=6,
)
OPTIONS = sorted(LoraConfig().to_dict().keys() | AdapterConfig.model_fields.keys() - {"peft_type"})


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(OPTIONS), JSON, min_size=1, max_size=3))
def test_any_option_of_any_value_is_taken_or_refused(config: dict[str, Any]) -> None:
    good = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    with suppress(UserError):
        found = lora_config(good | config, {key("lora_A.weight"): torch.ones(4, 256)}, Path("a"))
        assert 1 <= found.r <= 4
        assert found.megatron_config is None
