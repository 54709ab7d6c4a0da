"""From what a user calls a model, a format or a device to the planner's own entry for it."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from qlab.models.configuration import checked
from qlab.models.gguf import gguf_sizes
from qlab.models.locating import hub_match, weight_files
from qlab.models.named import NAMES, named_folder
from qlab.plan.counted import counted_shape
from qlab.plan.plan import BITS, SHAPES, WIDTHS, Shape, hardware, of_groups, shape_of
from qlab.support.errors import UserError
from qlab.support.reading import path_of, read_json

DENSE = ("llama", "mistral", "qwen2", "qwen3", "cohere", "gemma", "phi3")  # gated MLPs, one cache entry a layer and KV head
WINDOWED = {"mistral": 4096, "phi3": None}  # those of them whose attention may have a window, with transformers' default
WINDOWED_IF_SAID = ("qwen2", "qwen3")
TIED_UNLESS_SAID = ("cohere", "gemma")  # types whose default is one matrix for embedding and head
NEAR = 1.5  # a size such as 70B is planned as a published model of at most this many times its parameters, or as much smaller
INT4 = "AWQ/GPTQ INT4 g128"
ALIASES = {
    "fp32": "FP32", "fp16": "FP16", "bf16": "FP16", "int8": "INT8", "int4": INT4, "awq": INT4, "gptq": INT4,
    "q4_k_m": "GGUF Q4_K_M", "nf4": "NF4 double quant", "w8a8": "INT8 W8A8", "fp8": "FP8 W8A8",
    "int3": "INT3 g128", "int2": "INT2 g128",
}  # fmt: skip
EIGHT_BITS = {
    "w8a8": re.compile(r"(?:smooth-)?(?:rtn|gptq)-w8a8(?:-static)?"),
    "fp8": re.compile(r"rtn-fp8(?:-b128)?"),
}  # recipes, by ALIASES
RECIPE = re.compile(r"(?:rtn|awq|gptq|awq-gptq|tuned)-w([2348])g(128|64|32)(?:-.*)?")  # of grouped integers: bits and group size


def find_shape(name: str) -> tuple[str, Shape]:
    """The shape of a model, with what it was taken from in words.

    `name`: one of SHAPES, a size such as 70B (the nearest of SHAPES), a named model, a folder, a .gguf file, a config.json, or a hub id,
    of which only config.json is fetched.

    Raises:
        UserError: none of these, or an architecture that this arithmetic does not cover.
    """
    for known, shape in SHAPES.items():
        if plain(known) == plain(name):
            return known, shape
    if size := re.fullmatch(r"(\d+(?:\.\d+)?)\s*[bB]", name):
        return nearest(float(size[1]))
    path = named_folder(name) or path_of(name)
    if path.is_dir() or (path.suffix == ".gguf" and path.is_file()):
        files = weight_files(path)  # of a folder with both, the safetensors files, as everywhere
        if files and files[0].suffix == ".gguf":
            return name, config_shape(gguf_sizes(files[0]), name)
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file() and (match := hub_match(name)):
        file = fetched_config(match[1], match[2])
    if not file.is_file():
        raise UserError(
            f"no model {name!r}: expected {', '.join(SHAPES)}, a size such as 70B, {', '.join(map(repr, NAMES))}, a folder, "
            "a .gguf file, a config.json or a hub id"
        )
    config = read_json(file)
    checked(config, name)
    return name, config_shape(config, name)


def nearest(billions: float) -> tuple[str, Shape]:
    """The published model nearest to so many billion parameters, and the words that say so."""
    if not 0 < billions < 1e6:
        raise UserError(f"a model of {billions:g} B parameters: expected more than none, and less than a million")
    known, shape = min(SHAPES.items(), key=lambda item: abs(math.log(item[1].parameters / 1e9 / billions)))
    found = shape.parameters / 1e9
    if not 1 / NEAR <= found / billions <= NEAR:
        raise UserError(f"no published shape near {billions:g}B: the nearest, {known}, has {found:.1f} B parameters. Give a config.json")
    return f"{known} ({found:.1f} B parameters, the published shape nearest to {billions:g}B)", shape


def config_shape(config: dict[str, Any], name: str) -> Shape:
    """The shape in a config.json: of a dense decoder of a known type, which attends to all tokens, by its sizes, of any other by its class.

    Raises:
        UserError: an architecture that qlab does not take, or sizes missing.
    """
    kind = config.get("model_type")
    if kind not in DENSE or has_window(config):
        return counted_shape(config, name)
    return shape_of({"tie_word_embeddings": kind in TIED_UNLESS_SAID, **config})


def has_window(config: dict[str, Any]) -> bool:
    """Whether attention of a dense decoder may be to a window of tokens, to which its cache is then bounded."""
    kind = config["model_type"]
    if kind in WINDOWED_IF_SAID:
        return bool(config.get("use_sliding_window"))
    return bool(config.get("sliding_window", WINDOWED.get(kind))) and kind in WINDOWED


def fetched_config(hub_id: str, revision: str | None = None) -> Path:
    """A hub model's config.json, from the local cache or the hub; no weights."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(hub_id, "config.json", revision=revision))
    except Exception as error:  # the client raises many kinds when the network is away; all mean the same here
        raise UserError(
            f"could not read config.json of {hub_id!r} from the hub ({type(error).__name__}). Give a folder or a config.json, or one of "
            f"{', '.join(SHAPES)}"
        ) from error


def find_format(name: str) -> str:
    """The key of BITS for a format, a recipe such as awq-w4g64, or a short name such as q4_k_m.

    Raises:
        UserError: no such format.
    """
    known = {key.lower(): key for key in BITS} | ALIASES
    if recipe := RECIPE.fullmatch(name.lower()):
        known |= {name.lower(): of_groups(key, int(recipe[2])) for key, bits in WIDTHS.items() if bits == int(recipe[1])}
    known |= {name.lower(): ALIASES[key] for key, recipes in EIGHT_BITS.items() if recipes.fullmatch(name.lower())}
    if name.lower() not in known:
        raise UserError(f"no format {name!r}: expected one of {', '.join(ALIASES)}")
    return known[name.lower()]


def find_device(name: str, kinds: tuple[str, ...] = ("gpu", "apple")) -> dict[str, Any]:
    """The one entry of data/hardware.yaml that is called so: its id, its whole name, the end of it, or a part that no other has.

    Raises:
        UserError: none, or several.
    """
    devices = [device for device in hardware() if device["kind"] in kinds]
    wanted = name.strip().lower()
    exact = [device for device in devices if wanted == device["id"] or device["name"].lower().endswith(f" {wanted}")]
    exact = exact or [device for device in devices if device["name"].lower() == wanted]
    found = exact or [device for device in devices if wanted and wanted in device["name"].lower()]
    if len(found) != 1:
        several = f"{name!r} names {len(found)} devices" if found else f"no device {name!r} in data/hardware.yaml"
        raise UserError(f"{several}: expected one of {', '.join(device['name'] for device in found or devices)}")
    return found[0]


def plain(name: str) -> str:
    """A name without case, spaces and dashes."""
    return re.sub(r"[\s_-]", "", name).lower()
