"""Damaged configurations: config.json, and what lies beside it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from tests.fuzz.damage import (
    EITHER,
    GONE,
    WORKS,
    Case,
    a_folder,
    a_loop,
    a_pipe,
    both,
    config,
    content,
    cut,
    endless,
    gone,
    nested,
    sparse,
    values,
)

FILE = "config.json"
ALL = ("evaluate", "quantize", "plan", "serve")
RUN = ("evaluate", "quantize", "dry-run")
SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
)
NO_SIZES: dict[str, Any] = {
    "0": 0,
    "-1": -1,
    "1e12": 10**12,
    "2^70": 2**70,
    "4000 digits": 10**4000,
    "a text": "two",
    "a list": [],
    "an object": {},
    "1.5": 1.5,
    "true": True,
    "NaN": math.nan,
    "infinity": math.inf,
}
OTHERS: dict[str, list[Any]] = {
    "model_type": [None, GONE, "nosuch", "", 5, [], {}, "llama/../x", "é\ud800", "x" * 5000, "bert", "clip", "llava", "whisper"],
    "architectures": [None, GONE, "LlamaForCausalLM", [], [None], [5], {}, ["NoSuch"]],
    "dtype": [None, GONE, "evil", "float7", 5, [], "torch.float16", "int8", "float64", "Tensor"],
    "torch_dtype": [None, "evil", 5, [], "load"],
    "hidden_act": [None, GONE, "nosuch", 5, [], {}, "__class__"],
    "rms_norm_eps": [0, -1, "x", None, GONE, [], 1e300, math.nan, math.inf, True],
    "rope_theta": [0, -1, "x", [], 1e300, math.nan, 10**400],
    "rope_scaling": [
        5,
        "x",
        [],
        {},
        {"rope_type": "x"},
        {"type": 5},
        {"rope_type": "linear"},
        {"rope_type": "linear", "factor": 0},
        {"rope_type": "linear", "factor": "x"},
        {"rope_type": "yarn", "factor": -1.0},
        {"rope_type": "dynamic", "factor": math.nan},
        {"rope_type": "llama3"},
        {"rope_type": "longrope", "factor": 1.0, "short_factor": [1], "long_factor": [1]},
    ],
    "rope_parameters": [
        5,
        "x",
        [],
        None,
        {},
        {"rope_type": "x"},
        {"rope_type": None},
        {"rope_type": []},
        {"rope_type": "default"},
        {"rope_type": "default", "rope_theta": "x"},
        {"rope_type": "default", "rope_theta": 0.0},
        {"rope_type": "linear", "rope_theta": 1e4, "factor": []},
        {"full_attention": {"rope_type": "default"}},
        {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 2.0},
    ],
    "tie_word_embeddings": [None, "x", 5, [], {}],
    "attention_bias": [None, True, "x", 5, []],
    "mlp_bias": [True, "x", []],
    "attention_dropout": [None, "x", -1, 2, math.nan],
    "initializer_range": [None, "x", -1, math.nan],
    "use_cache": [None, "x", []],
    "pretraining_tp": [0, -1, "x", 2, None],
    "bos_token_id": [None, -1, 10**12, 2**70, "x", [], [0], {}, 1.5],
    "eos_token_id": [None, -1, 10**12, 2**70, "x", [], [0, 1], ["x"], {}, 1.5],
    "pad_token_id": [-1, 4096, 10**12, "x", []],
    "quantization_config": [
        None,
        {},
        [],
        5,
        "awq",
        {"quant_method": None},
        {"quant_method": []},
        {"quant_method": "awq"},
        {"quant_method": "nosuch"},
        {"quant_method": "gptq", "bits": "x"},
        {"quant_method": "gptq", "bits": 4, "dynamic": 5},
        {"quant_method": "gptq", "bits": 4, "group_size": [], "dynamic": {"(": {"bits": 8}, "-:x": 5}},
        {"quant_method": "bitsandbytes"},
        {"quant_method": "fp8", "weight_block_size": "x"},
        {"quant_method": "compressed-tensors", "config_groups": []},
    ],
    "text_config": [None, {}, [], 5, {"hidden_size": 0}, {"num_hidden_layers": 10**9}],
    "vision_config": [{}, 5],
    "auto_map": [None, [], 5, {}, {"AutoConfig": 5}, {"AutoModelForCausalLM": "x.py"}],
    "layer_types": [None, [], 5, ["x"], ["full_attention"], ["sliding_attention"] * 2],
    "sliding_window": [0, -1, "x", 16, 10**12],
    "_attn_implementation": ["nosuch", 5, "flash_attention_2"],
    "attn_implementation": ["nosuch", 5, "flash_attention_2"],
    "transformers_version": [None, 5, "x", "99.0"],
    "_name_or_path": [5, "/etc/passwd"],
    "configuration_files": [["config.99.0.0.json"], 5],
    "id2label": [5, "x", {"a": 1}],
    "num_labels": [-1, 10**9, "x"],
    "max_length": ["x", -1],
    "use_return_dict": ["x"],
    "is_encoder_decoder": [True],
    "is_decoder": ["x"],
    "torchscript": ["x", True],
    "chunk_size_feed_forward": ["x"],
    "n_layer": [10**9],
    "__class__": [5],
    "self": [5],
    "kwargs": [5, {"a": 1}],
    "name_or_path": [5],
    "save_pretrained": [5],
    "to_dict": [5],
}
DAMAGED: dict[str, Any] = {
    "no JSON": "{",
    "empty": "",
    "a list": "[]",
    "a number": "5",
    "null": "null",
    "no UTF-8": b'{"a": "\xff"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "nested 500 deep": nested(500),
    "nested 200,000 deep": nested(200_000),
    "a number of 10,000 digits": '{"a": 1' + "0" * 10_000 + "}",
    "an empty object": "{}",
    "zero bytes": b"\0" * 100,
}
# Other model types of the same tensors, whose attributes differ: none is a fault, whatever comes of it.
TYPES = (
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "cohere",
    "phi3",
    "gpt2",
    "opt",
    "bloom",
    "mamba",
    "mixtral",
    "deepseek_v3",
    "t5",
    "gpt_oss",
    "jamba",
    "llama4_text",
    "falcon",
    "gpt_neox",
    "rwkv",
    "olmo2",
    "qwen3_next",
    "deepseek_v2",
    "bart",
    "blip-2",
    "qwen2_vl",
    "gemma3",
)


def shown(value: Any) -> str:
    return "gone" if value is GONE else json.dumps(value)[:120]


def foreign(folder: Path) -> None:
    """A model with Python code of its own, which writes a file where it is run."""
    code = f"open({str(folder.parent / 'RAN')!r}, 'w')\nclass C: pass\n"
    (folder / "code.py").write_text(code)
    config(model_type="mine", auto_map={"AutoConfig": "code.C", "AutoModelForCausalLM": "code.C", "AutoTokenizer": ["code.C", None]})(
        folder
    )
    values("tokenizer_config.json", auto_map={"AutoTokenizer": ["code.C", "code.C"]}, tokenizer_class="C")(folder)


CASES = [
    *(Case(f"{key} {name}", config(**{key: value}), ALL, says=key) for key in SIZES for name, value in NO_SIZES.items()),
    *(Case(f"{key} null", config(**{key: None}), ALL, outcome=EITHER) for key in SIZES),
    *(Case(f"{key} gone", config(**{key: GONE}), ALL, outcome=EITHER) for key in SIZES),
    *(
        Case(f"{key} too {word}", config(**{key: value}), RUN, outcome=EITHER)
        for key in SIZES
        for word, value in (("small", 1), ("odd", 3), ("large", 1 << 20))
    ),
    *(
        Case(f"{key} {shown(value)}", config(**{key: value}), ("evaluate", "dry-run", "plan", "serve"), outcome=EITHER)
        for key, found in OTHERS.items()
        for value in found
    ),
    *(Case(f"model type {kind}", config(model_type=kind), RUN, outcome=EITHER) for kind in TYPES),
    *(Case(f"config.json {name}", content(FILE, data), ALL) for name, data in DAMAGED.items()),
    Case("config.json is a folder", a_folder(FILE), ALL, says=FILE),
    Case("config.json is a pipe", a_pipe(FILE), ALL, says=FILE),
    Case("config.json links to itself", a_loop(FILE), ALL, says=FILE),
    Case("config.json without end", endless(FILE), ALL, says=FILE),
    Case("config.json of 64 GB of zeros", sparse(FILE), ALL, says=FILE),
    Case("config.json cut", cut(FILE, 0.5), ALL, says=FILE),
    Case("no config.json", gone(FILE), ALL, says=FILE),
    Case("num_hidden_layers 1", config(num_hidden_layers=1), RUN, says="does not describe"),
    Case("num_hidden_layers 3", config(num_hidden_layers=3), RUN, says="lacks"),
    Case(
        "a configuration alone with num_hidden_layers 1e9", both(config(num_hidden_layers=10**9), gone("model.safetensors")), ("dry-run",)
    ),
    Case("a configuration alone with hidden_size 0", both(config(hidden_size=0), gone("model.safetensors")), ("dry-run",)),
    Case("a configuration alone with hidden_size text", both(config(hidden_size="x"), gone("model.safetensors")), ("dry-run",)),
    *(
        Case(
            f"a configuration alone with {key} {name}",
            both(config(**{key: value}), gone("model.safetensors")),
            ("dry-run",),
            outcome=EITHER,
        )
        for key in SIZES
        for name, value in (("1", 1), ("7", 7), ("2^26", 1 << 26), ("null", None))
    ),
    Case("code of its own", foreign, RUN, says="model"),
    Case("code of its own, only planned or written about", foreign, ("plan", "serve"), outcome=EITHER),
    *(
        Case(f"generation_config.json {name}", content("generation_config.json", data), ("evaluate",))
        for name, data in DAMAGED.items()
        if name not in ("an empty object",)
    ),
    Case("generation_config.json an empty object", content("generation_config.json", "{}"), ("evaluate",), outcome=WORKS),
    *(
        Case(
            f"generation_config.json {key} {shown(value)}", values("generation_config.json", **{key: value}), ("evaluate",), outcome=EITHER
        )
        for key, value in (
            ("eos_token_id", "x"),
            ("eos_token_id", 10**30),
            ("temperature", "x"),
            ("top_k", -1),
            ("max_length", 10**30),
            ("cache_implementation", "x"),
            ("_from_model_config", "x"),
            ("watermarking_config", 5),
            ("compile_config", 5),
            ("transformers_version", 5),
            ("bos_token_id", {}),
            ("do_sample", "x"),
            ("num_beams", 0),
        )
    ),
    Case("generation_config.json is a pipe", a_pipe("generation_config.json"), ("evaluate", "quantize"), says="generation_config.json"),
    Case("generation_config.json is a folder", a_folder("generation_config.json"), ("evaluate", "quantize"), says="generation_config.json"),
]
