"""Damaged quantized checkpoints: what lies beside the codes, the quantization's own configuration, and qlab's notes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.fuzz.configs import DAMAGED
from tests.fuzz.damage import (
    EITHER,
    GONE,
    REFUSED,
    WORKS,
    Case,
    Change,
    a_folder,
    a_pipe,
    content,
    endless,
    ints,
    poisoned,
    tensor,
    within,
)

EVALUATE = ("evaluate",)
ONE = "layers.0.mlp.down_proj"
COMPANIONS = {  # what lies beside a layer's codes, by the model's format
    "awq": ("qweight", "qzeros", "scales"),
    "gptq": ("qweight", "qzeros", "scales", "g_idx"),
    "nf4": (
        "weight",
        "weight.absmax",
        "weight.quant_map",
        "weight.nested_absmax",
        "weight.nested_quant_map",
        "weight.quant_state.bitsandbytes__nf4",
    ),
    "fp8": ("weight", "weight_scale_inv"),
    "compressed": ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape"),
    "mxfp4": ("gate_up_proj_blocks", "gate_up_proj_scales"),
}
OPTIONAL = ("g_idx", "weight_shape")  # what is told by other tensors too
RAW = {torch.int32, torch.uint8, torch.int64}


def name_of(model: str, part: str) -> str:
    return f"layers.0.mlp.experts.{part}" if model == "mxfp4" else f"{ONE}.{part}"


def wider(old: Tensor) -> Tensor:
    """One more than there should be, in the last dimension."""
    return torch.cat([old, old[..., :1]], dim=-1)


def halved(old: Tensor) -> Tensor:
    return old[: max(1, len(old) // 2)]


def another_type(old: Tensor) -> Tensor:
    return old.float() if old.dtype in RAW or old.dtype == torch.float8_e4m3fn else ints(old)


def in_bits(value: int) -> Any:
    """A tensor whose first number is another one."""

    def change(old: Tensor) -> Tensor:
        new = old.clone()
        new.view(-1)[0] = value
        return new

    return change


def state(**new: Any) -> Change:
    """Change the JSON that bitsandbytes stores as a tensor."""

    def change(old: Tensor) -> Tensor:
        known = json.loads(bytes(old.tolist())) | new
        text = json.dumps({key: value for key, value in known.items() if value is not GONE})
        return torch.tensor(list(text.encode()), dtype=torch.uint8)

    return tensor(f"{ONE}.weight.quant_state.bitsandbytes__nf4", change)


def quantization(path: list[str | int], value: Any) -> Change:
    return within("config.json", ["quantization_config", *path], value)


GOOD = {"num_bits": 4, "strategy": "group", "group_size": 32}
SETTINGS: dict[str, dict[str, list[Any]]] = {
    "awq": {"bits": [3, "4", None, 10**30, []], "version": [5, None, "gemv", []], "group_size": [0, -1, "x", 64, None]},
    "gptq": {"bits": [5, "4", None, [], 2, 8], "checkpoint_format": [5, "x", None, []], "group_size": [0, "x"], "desc_act": ["x"]},
    "nf4": {"load_in_4bit": [False, None, "x"], "bnb_4bit_quant_type": [5, "x", None]},
    "fp8": {"weight_block_size": ["x", 5, [], [0, 0], [128], [-1, 128], ["a", "b"], [10**12, 1], None, {}], "fmt": [5, None]},
    "compressed": {
        "config_groups": [
            [],
            5,
            "x",
            {},
            {"g": 5},
            {"g": {}},
            {"g": {"weights": 5}},
            {"g": {"weights": {}}},
            {"g": {"weights": {"num_bits": "4"}}},
            {"g": {"targets": 5, "weights": GOOD}},
            {"g": {"targets": ["re:("], "weights": GOOD}},
            {"g": {"targets": ["Linear"], "weights": {"num_bits": 4, "strategy": "group"}}},
            {"g": {"targets": ["Linear"], "weights": {"num_bits": 4, "strategy": "group", "group_size": 0}}},
            {"g": {"targets": ["Linear"], "weights": {"num_bits": 4, "strategy": "group", "group_size": "x"}}},
            {"g": {"targets": ["Linear"], "weights": {"num_bits": 4, "strategy": "block", "block_structure": "x"}}},
            {"g": {"targets": ["re:(a+)+$"], "weights": GOOD}},
        ],
        "format": [5, [], None, "x"],
        "sparsity_config": [5, [], "x", {"format": 5}],
        "transform_config": [5, [], "x"],
    },
    "mxfp4": {"quant_method": ["awq", "gptq", 5, [], "bitsandbytes", "compressed-tensors"]},
}
MANIFEST, COST = "qlab.json", "qlab-cost.json"
INPUTS = '{"inputs": {"model": "m", "recipe": {}, "calibration": {}, "versions": {}, "device": "cpu"}'
NOTES: dict[str, Any] = {
    "without inputs": "{}",
    "of wrong types": '{"inputs": {"model": 5, "recipe": [], "calibration": {}, "versions": {}, "device": "cpu"}}',
    "with notes that are numbers": INPUTS + ', "notes": {"a": 5}}',
    "with files that are numbers": INPUTS + ', "files": [5]}',
    **DAMAGED,
}


def note_in_out(name: str, data: bytes | str) -> Change:
    """A note where the artifact is to be made."""

    def change(folder: Path) -> None:
        place = folder.parent / "work" / "out" / "awq-w4g32"
        place.mkdir(parents=True)
        for note in (MANIFEST, COST):
            (place / note).write_text("{}")
        (place / name).write_bytes(data if isinstance(data, bytes) else data.encode())

    return change


CASES = [
    *(Case(f"{model} as it is made", lambda folder: None, EVALUATE, WORKS, model=model) for model in (*COMPANIONS, "gguf", "plain")),
    *(
        Case(
            f"{model} without {part}",
            tensor(name_of(model, part), lambda old: None),
            EVALUATE,
            EITHER if part in OPTIONAL else REFUSED,
            model=model,
        )
        for model, parts in COMPANIONS.items()
        for part in parts
    ),
    *(
        Case(
            f"{model} with {part} {word}",
            tensor(name_of(model, part), change),
            EVALUATE,
            EITHER if part in OPTIONAL or (model, part, word) == ("nf4", "weight.quant_state.bitsandbytes__nf4", "flattened") else REFUSED,
            model=model,
        )
        for model, parts in COMPANIONS.items()
        for part in parts
        for word, change in (
            ("halved", halved),
            ("wider", wider),
            ("flattened", lambda old: old.flatten()[None]),
            ("empty", lambda old: old[:0]),
            ("of another type", another_type),
        )
    ),
    *(
        Case(f"{model} with a {name} {part}", tensor(name_of(model, part), poisoned(value)), EVALUATE, model=model, says="NaN or infinit")
        for model, part in (
            ("awq", "scales"),
            ("gptq", "scales"),
            ("compressed", "weight_scale"),
            ("fp8", "weight_scale_inv"),
            ("nf4", "weight.nested_absmax"),
        )
        for name, value in (("NaN", torch.nan), ("infinite", torch.inf))
    ),
    Case("gptq with a g_idx too large", tensor(name_of("gptq", "g_idx"), in_bits(99999)), EVALUATE, model="gptq", says="g_idx"),
    Case("gptq with a negative g_idx", tensor(name_of("gptq", "g_idx"), in_bits(-1)), EVALUATE, model="gptq", says="g_idx"),
    Case(
        "mxfp4 with the largest exponents",
        tensor(name_of("mxfp4", "gate_up_proj_scales"), lambda old: old.fill_(255)),
        EVALUATE,
        EITHER,
        model="mxfp4",
    ),
    *(
        Case(f"nf4 with {key} {json.dumps(value)[:30] if value is not GONE else 'gone'}", state(**{key: value}), EVALUATE, model="nf4")
        for key, found in {
            "shape": [[10**6, 10**6], [-1, 5], [0, 0], "x", [1], [1.5, 2], GONE, None, [[1], [2]]],
            "blocksize": [0, "x", 128, GONE],
            "dtype": ["evil", "load", 5, None, GONE],
            "nested_offset": ["x", [], None],
            "nested_blocksize": [0, "x", 128],
            "quant_type": [],
        }.items()
        for value in found
    ),
    Case("nf4 with an offset that is no number", state(nested_offset=float("nan")), EVALUATE, model="nf4"),
    *(
        Case(
            f"nf4 with a state {name}",
            tensor(
                f"{ONE}.weight.quant_state.bitsandbytes__nf4",
                lambda old, data=data: torch.tensor(list(data.encode() if isinstance(data, str) else data) or [32], dtype=torch.uint8),
            ),
            EVALUATE,
            model="nf4",
        )
        for name, data in DAMAGED.items()
        if "200,000" not in name
    ),
    *(
        Case(f"{model} {key} {json.dumps(value)[:150]}", quantization([key], value), EVALUATE, EITHER, model=model)
        for model, keys in SETTINGS.items()
        for key, found in keys.items()
        for value in found
    ),
    *(
        Case(f"{model} called {other}", quantization(["quant_method"], other), EVALUATE, model=model)
        for model in ("awq", "gptq", "nf4", "fp8", "compressed")
        for other in ("awq", "gptq", "bitsandbytes", "fp8", "compressed-tensors", "mxfp4")
        if other not in (model, {"nf4": "bitsandbytes", "compressed": "compressed-tensors"}.get(model))
    ),
    *(
        Case(
            f"{model} without its configuration",
            lambda folder: (
                (folder / "config.json").write_text(
                    json.dumps(
                        {
                            key: value
                            for key, value in json.loads((folder / "config.json").read_text()).items()
                            if key != "quantization_config"
                        }
                    )
                )
                and None
            ),
            EVALUATE,
            model=model,
        )
        for model in COMPANIONS
    ),
    # qlab's notes
    *(
        Case(f"qlab.json {name}", content(MANIFEST, data), ("evaluate", "serve"), says=MANIFEST, model="awq")
        for name, data in NOTES.items()
    ),
    *(Case(f"qlab-cost.json {name}", content(COST, data), ("evaluate", "serve"), says=COST, model="awq") for name, data in DAMAGED.items()),
    Case("qlab-cost.json negative", content(COST, '{"seconds": -1, "peak_bytes": 5}'), EVALUATE, says=COST, model="awq"),
    Case("qlab.json is a folder", a_folder(MANIFEST), EVALUATE, says=MANIFEST, model="awq"),
    Case("qlab.json is a pipe", a_pipe(MANIFEST), EVALUATE, says=MANIFEST, model="awq"),
    Case("qlab.json without end", endless(MANIFEST), EVALUATE, says=MANIFEST, model="awq"),
    *(Case(f"{MANIFEST} in --out {name}", note_in_out(MANIFEST, data), ("quantize",), says=MANIFEST) for name, data in NOTES.items()),
    Case(f"{COST} in --out damaged", note_in_out(COST, "{"), ("quantize",)),
]
