"""Which tensor gets which type: what llama.cpp itself gave them."""

from __future__ import annotations

from typing import Any

import pytest

from qlab.formats.gguf.mix import Mix, more_bits, tensor_type
from qlab.support.errors import UserError

# The types in files that llama.cpp's own quantizer (llama_model_quantize, llama-cpp-python 0.3.36) wrote of random models with these
# configurations. Each line lists token_embd (and output where it is not tied), then attn_q, attn_k, attn_v, attn_output, ffn_gate,
# ffn_up, ffn_down: one letter a layer, or one letter for all layers. The lines of q3_k_l, q5_k_s, q6_k, q2_k_s and of the IQ4 mixes were
# read off its rules instead (llama-quant.cpp at 007dbbf); "-plain" is without an importance matrix.
LETTERS = {
    "8": "Q8_0", "6": "Q6_K", "5": "Q5_K", "4": "Q4_K", "3": "Q3_K", "2": "Q2_K", "e": "Q5_1", "d": "Q5_0", "c": "Q4_0", "n": "IQ4_NL",
    "x": "IQ4_XS", "h": "F16",
}  # fmt: skip
PARTS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
FACTS = {
    "Llama of 20 layers": {
        "q4_k_m": "4 6 4 4 66446446446446446666 4 4 4 66446446446446446666",
        "q4_k_s": "4 6 4 4 55554444444444444444 4 4 4 55444444444444444444",
        "q5_k_m": "5 6 5 5 66556556556556556666 5 5 5 66556556556556556666",
        "q3_k_m": "3 6 3 3 55444444444444444444 4 3 3 54444444444444444444",
        "q2_k": "2 6 2 2 3 3 2 2 3",
        "q8_0": "8 8 8 8 8 8 8 8 8",
        "q3_k_l": "3 6 3 3 5 5 3 3 5",
        "q5_k_s": "5 6 5 5 5 5 5 5 5",
        "q6_k": "6 6 6 6 6 6 6 6 6",
        "q2_k_s": "2 6 2 2 2 2 2 2 44222222222222222222",
        "iq4_nl": "n 6 n n n n n n n",
        "iq4_xs": "x 6 x x x x x x x",
        "iq4_xs-plain": "x 6 x x x x x x 55xxxxxxxxxxxxxxxxxx",
    },
    "Llama of 32 layers, tied": {
        "q4_k_m": "6 4 4 66664464464464464464464464466666 4 4 4 66664464464464464464464464466666",
        "q4_k_s": "6 4 4 55554444444444444444444444444444 4 4 4 55554444444444444444444444444444",
        "q5_k_m": "6 5 5 66665565565565565565565565566666 5 5 5 66665565565565565565565565566666",
        "q3_k_m": "6 3 3 55444444444444444444444444444444 4 3 3 55444444444444444444444444444444",
        "q2_k": "6 2 2 4 3 2 2 3",
        "q8_0": "8 8 8 8 8 8 8 8",
        "q3_k_l": "6 3 3 5 5 3 3 5",
        "q2_k_s": "6 2 2 4 2 2 2 44442222222222222222222222222222",
        "iq4_nl": "6 n n 5 n n n n",
        "iq4_nl-plain": "6 n n 5 n n n 5555nnnnnnnnnnnnnnnnnnnnnnnnnnnn",
        "iq4_xs": "6 x x 5 x x x x",
    },
    "Llama 70B": {
        "q4_k_m": "4 6 4 4 66666666665565565565565565565565565565565565565565565565565565565565566666666666 "
        "4 4 4 66666666664464464464464464464464464464464464464464464464464464464464466666666666",
        "q4_k_s": "4 6 4 4 5 4 4 4 55555555554444444444444444444444444444444444444444444444444444444444444444444444",
        "q3_k_m": "3 6 3 3 5 4 3 3 55555444444444444444444444444444444444444444444444444444444444444444444444444444",
        "q2_k": "2 6 2 2 5 3 2 2 3",
        "q2_k_s": "2 6 2 2 5 2 2 2 44444444442222222222222222222222222222222222222222222222222222222222222222222222",
        "iq4_xs": "x 6 x x 5 x x x x",
    },
    "Qwen2 of 80 layers": {
        "q4_k_s": "4 6 4 4 5 4 4 4 55555555554444444444444444444444444444444444444444444444444444444444444444444444",
        "q3_k_m": "3 6 3 3 5 4 3 3 55555444444444444444444444444444444444444444444444444444444444444444444444444444",
        "q2_k": "2 6 2 2 5 3 2 2 3",
    },
    "Qwen3 of 80 layers": {
        "q4_k_m": "4 6 4 4 66666666664464464464464464464464464464464464464464464464464464464464466666666666 "
        "4 4 4 66666666664464464464464464464464464464464464464464464464464464464464466666666666",
        "q4_k_s": "4 6 4 4 55554444444444444444444444444444444444444444444444444444444444444444444444444444 "
        "4 4 4 55555555554444444444444444444444444444444444444444444444444444444444444444444444",
        "q3_k_m": "3 6 3 3 55444444444444444444444444444444444444444444444444444444444444444444444444444444 "
        "4 3 3 55555444444444444444444444444444444444444444444444444444444444444444444444444444",
        "q2_k": "2 6 2 2 4 3 2 2 3",
    },
    "eight experts": {
        "q4_k_m": "4 6 4 8 8 5 4 4 66446446446446446666",
        "q4_k_s": "4 6 4 8 8 5 4 4 55444444444444444444",
        "q5_k_m": "5 6 5 8 8 5 5 5 66556556556556556666",
        "q3_k_m": "3 6 3 8 8 5 3 3 54444444444444444444",
        "q2_k": "2 6 2 8 8 5 2 2 3",
        "q8_0": "8 8 8 8 8 8 8 8 8",
        "q2_k_s": "2 6 2 8 8 2 2 2 44222222222222222222",
        "iq4_nl": "n 6 n 8 8 5 n n n",
        "iq4_xs": "x 6 x 8 8 5 x x x",
    },
    "rows of 320 and 544": {
        "q4_k_m": "d 8 d d 8dd8dd888 d d d 8dd8dd888",
        "q4_k_s": "d 8 d d eeeeddddd d d d edddddddd",
        "q5_k_m": "e 8 e e 8ee8ee888 e e e 8ee8ee888",
        "q3_k_m": "c 8 c c eeddddddd d c c d",
        "q2_k": "c 8 c c c c c c c",
        "q8_0": "8 8 8 8 8 8 8 8 8",
        "q3_k_l": "c 8 c c e e c c e",
        "iq4_nl": "n 8 n n n n n n n",
        "iq4_xs": "n 8 n n n n n n n",
        "iq4_xs-plain": "n 8 n n n n n n ennnnnnnn",
    },
    "rows of 320 and 544, tied": {
        "q4_k_m": "8 d d 8dd8dd888 d d d 8dd8dd888",
        "q4_k_s": "8 d d eeeeddddd d d d edddddddd",
        "q5_k_m": "8 e e 8ee8ee888 e e e 8ee8ee888",
        "q3_k_m": "8 c c eeddddddd d c c d",
        "q2_k": "8 c c d c c c c",
        "q8_0": "8 8 8 8 8 8 8 8",
    },
    "rows of 80 and 272": {
        "q4_k_m": "h h h h h h h h h",
        "q8_0": "h h h h h h h h h",
    },
}


def config(kind: str, layers: int, heads: int, shared: int, hidden: int, inner: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": kind, "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": shared,
        "hidden_size": hidden, "intermediate_size": inner, **more,
    }  # fmt: skip


CONFIGS = {
    "Llama of 20 layers": config("llama", 20, 4, 2, 256, 512),
    "Llama of 32 layers, tied": config("llama", 32, 4, 1, 256, 512, tie_word_embeddings=True),
    "Llama 70B": config("llama", 80, 8, 1, 256, 256),
    "Qwen2 of 80 layers": config("qwen2", 80, 4, 4, 256, 256),
    "Qwen3 of 80 layers": config("qwen3", 80, 8, 2, 256, 256),
    "eight experts": config("llama", 20, 4, 2, 256, 512, num_local_experts=8),
    "rows of 320 and 544": config("llama", 9, 5, 5, 320, 544),
    "rows of 320 and 544, tied": config("qwen2", 9, 5, 1, 320, 544, tie_word_embeddings=True),
    "rows of 80 and 272": config("llama", 2, 5, 5, 80, 272),
}


@pytest.mark.parametrize(("case", "mix"), [(case, mix) for case, mixes in FACTS.items() for mix in mixes])
def test_every_tensor_gets_the_type_that_llama_cpp_gives_it(case: str, mix: str) -> None:
    model = CONFIGS[case]
    layers, hidden = model["num_hidden_layers"], model["hidden_size"]
    fields = FACTS[case][mix].split()
    ends = ["token_embd.weight"] if model.get("tie_word_embeddings") else ["token_embd.weight", "output.weight"]
    expected = dict(zip(ends, fields, strict=False))
    for part, letters in zip(PARTS, fields[len(ends) :], strict=True):
        expected |= {f"blk.{layer}.{part}.weight": (letters * layers)[layer] for layer in range(layers)}
    shapes = {name: (8, model["intermediate_size"] if "ffn_down" in name else hidden) for name in expected}
    of_mix = Mix(mix.removesuffix("-plain"), weighed=not mix.endswith("-plain"))
    assert {name: tensor_type(name, shapes[name], of_mix, model) for name in expected} == {n: LETTERS[k] for n, k in expected.items()}


def test_norms_biases_and_routers_stay_and_f16_is_f16() -> None:
    model = CONFIGS["eight experts"]
    for mix in ("f16", "q8_0", "q2_k"):
        for name, shape in {"blk.0.attn_norm.weight": (256,), "blk.0.attn_q.bias": (256,), "blk.0.ffn_gate_inp.weight": (8, 256)}.items():
            assert tensor_type(name, shape, Mix(mix), model) == "F32"
    assert tensor_type("blk.0.ffn_down_exps.weight", (8, 256, 512), Mix("f16"), model) == "F16"
    assert tensor_type("blk.0.ffn_down_exps.weight", (8, 256, 512), Mix("q4_k_m"), model) == "Q6_K"


@pytest.mark.parametrize("mix", ["q2_k", "q3_k_m", "q4_k_s", "q4_k_m", "q5_k_m"])
def test_a_fused_projection_gets_what_its_values_would(mix: str) -> None:
    model = CONFIGS["Llama of 20 layers"]
    for layer in range(20):
        kinds = {tensor_type(f"blk.{layer}.{part}.weight", (8, 256), Mix(mix), model) for part in ("attn_v", "attn_qkv", "attn_kv_b")}
        assert len(kinds) == 1


def test_more_bits_where_llama_cpp_has_them() -> None:
    assert [layer for layer in range(32) if more_bits(layer, 32)] == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]


def test_an_unknown_mix_is_refused() -> None:
    with pytest.raises(UserError, match="no GGUF mix 'q9': expected one of f16, q8_0"):
        tensor_type("output.weight", (8, 256), Mix("q9"), CONFIGS["Llama 70B"])
