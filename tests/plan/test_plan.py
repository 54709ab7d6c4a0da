"""The planner's arithmetic, against published sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qlab.methods.rtn import rtn
from qlab.plan.capacity import capacity
from qlab.plan.plan import (
    CACHES,
    GB,
    SHAPES,
    Cached,
    Counted,
    cache_bytes,
    check_cache,
    device_named,
    fit,
    hardware,
    plan,
    shape_of,
    weight_bytes,
)
from qlab.plan.shapes import find_device
from qlab.support.errors import UserError

SEVENTY = SHAPES["Llama-3.1-70B"]


def test_a_cache_is_one_of_those_that_are_known() -> None:
    for name in CACHES:
        check_cache(name)
    with pytest.raises(UserError, match="a KV cache in 'q2': expected f16, q8_0, q4_0, fp8"):
        check_cache("q2")


@pytest.mark.parametrize(
    ("name", "billions"),
    [("Llama-3.1-8B", 8.03), ("Llama-3.1-70B", 70.55), ("Mistral-7B-v0.3", 7.25), ("Qwen2.5-7B", 7.62), ("Command-R+", 103.8)],
)
def test_parameter_counts_are_the_published_ones(name: str, billions: float) -> None:
    assert SHAPES[name].parameters / 1e9 == pytest.approx(billions, rel=0.005)


@pytest.mark.parametrize(("format_name", "size"), [("FP16", 141), ("AWQ/GPTQ INT4 g128", 39.8), ("GGUF Q4_K_M", 43.1), ("FP32", 282)])
def test_seventy_billion_weights_take_what_was_found(format_name: str, size: float) -> None:
    assert weight_bytes(SEVENTY, format_name) / GB == pytest.approx(size, rel=0.02)


def test_the_cache_of_a_70b_is_by_hand() -> None:
    assert SEVENTY.kv_bytes_per_token == 327_680  # keys and values, 80 layers, 8 heads of 128, 2 bytes
    assert cache_bytes(SEVENTY, 16384) / GB == pytest.approx(5.4, abs=0.05)


def test_a_quantized_cache_by_hand() -> None:
    assert cache_bytes(replace(SEVENTY, cache_bits=CACHES["q8_0"]), 1000) == 80 * 2 * 8 * 128 / 32 * 34 * 1000  # 34 bytes for 32 numbers
    assert cache_bytes(replace(SEVENTY, cache_bits=CACHES["q4_0"]), 1000) == 80 * 2 * 8 * 128 / 32 * 18 * 1000
    shorter, longer = (fit(replace(SEVENTY, cache_bits=bits), "FP16", 4096, 80, 2).longest for bits in (16.0, 8.0))
    assert abs(longer - 2 * shorter) <= 1
    state = Counted((), 0, 0, 0, (Cached(100, None, 0), Cached(0, None, 50)))  # what is no cache of keys and values stays as it is
    assert cache_bytes(replace(SEVENTY, counted=state, cache_bits=8.0), 10) == 100 * 10 + 2 * 50


def test_the_guides_cases() -> None:
    fits = {(fit["device"], fit["count"]) for fit in plan(SEVENTY, "FP16", 4096).fits}
    assert not any("4090" in device for device, _ in fits if _ <= 4)  # four RTX 4090 hold 96 GB, not 141
    small = {(fit["device"], fit["count"]) for fit in plan(SEVENTY, "AWQ/GPTQ INT4 g128", 4096).fits}
    assert ("NVIDIA GeForce RTX 4090", 2) in small
    assert ("NVIDIA GeForce RTX 4090", 1) not in small


def test_a_ceiling_is_the_same_wherever_it_is_computed() -> None:
    """By hand: a step reads the blocks (35.56 GB), the head (2.10) and the cache of every sequence (1.34 each), not the embedding."""
    device, name = find_device("RTX 4090"), "AWQ/GPTQ INT4 g128"
    for sequences, count in ((1, 2), (4, 4)):
        (found,) = (fit for fit in plan(SEVENTY, name, 4096, sequences).fits if fit["device"] == device["name"])
        assert found["count"] == count
        assert found["tokens/s ceiling"] == round(capacity(SEVENTY, name, 4096, sequences, device, count).ceiling)
        assert found["tokens/s ceiling"] == round(sequences * count * 1008 / (35.563 + 2.1014 + sequences * 1.342))


def test_tensor_parallelism_divides_the_heads() -> None:
    assert {fit["count"] for fit in plan(SHAPES["Qwen2.5-7B"], "FP32", 4096).fits} <= {1, 2, 4}  # 28 heads: never 8


def test_a_config_becomes_its_shape() -> None:
    config = {
        "num_hidden_layers": 80, "hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64,
        "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
    }  # fmt: skip
    assert shape_of(config) == SEVENTY


def test_format_widths_are_what_the_methods_store() -> None:
    import torch

    from qlab.plan.plan import FORMATS

    assert FORMATS["AWQ/GPTQ INT4 g128"][0] == pytest.approx(rtn(torch.randn(64, 1024), 4, 128).bits_per_weight)
    assert FORMATS["INT8"][0] == pytest.approx(rtn(torch.randn(64, 1024), 8, 128).bits_per_weight)


def test_hardware_is_complete() -> None:
    devices = hardware()
    assert len({device["id"] for device in devices}) == len(devices) > 20
    assert all(device["bandwidth_gb_s"] > 0 and device["memory_gb"] > 0 for device in devices)


def test_table_and_claims_judge_by_one_rule() -> None:
    memory = device_named("RTX 4090")["memory_gb"]
    for context in (4096, 16384):
        found = {f["device"]: f["count"] for f in plan(SEVENTY, "AWQ/GPTQ INT4 g128", context).fits}["NVIDIA GeForce RTX 4090"]
        assert fit(SEVENTY, "AWQ/GPTQ INT4 g128", context, memory, found).holds
        assert not fit(SEVENTY, "AWQ/GPTQ INT4 g128", context, memory, found // 2).holds
    two = fit(SEVENTY, "FP16", 4096, 80, 2)
    assert two.holds
    assert fit(SEVENTY, "FP16", two.longest, 80, 2).holds
    assert not fit(SEVENTY, "FP16", two.longest + 1, 80, 2).holds
