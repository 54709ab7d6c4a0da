"""Why so many of a device hold a model, or do not, in sentences."""

from __future__ import annotations

from qlab.plan.explanation import explain
from qlab.plan.plan import SHAPES, splits

SEVENTY = SHAPES["Llama-3.1-70B"]


def test_heads_that_cannot_be_shared_are_explained() -> None:
    assert [n for n in range(1, 9) if splits(SEVENTY, n)] == [1, 2, 4, 8]
    text = explain("Llama-3.1-70B", "AWQ/GPTQ INT4 g128", 16384, "RTX 4090", 2)
    assert "It does not fit" in text
    assert "3 cannot share 64 heads" in text
    assert text.endswith("so it takes 4.")
    assert "It fits" in explain("Llama-3.1-70B", "FP16", 4096, "A100 80GB SXM", 2)


def test_what_weights_alone_do_not_fit_says_so() -> None:
    text = explain("Llama-3.1-70B", "FP16", 4096, "RTX 4090", 1)
    assert "the weights alone are too large" in text
    assert text.endswith("so it takes 8.")
    assert explain("Llama-3.1-70B", "FP32", 4096, "RTX 4090", 8).endswith("Eight do not hold it either.")
