"""The decision tree."""

from __future__ import annotations

from qlab.plan import choose


def test_the_tree_is_the_guides() -> None:
    assert choose.recommend("production on vLLM or TGI") == "AWQ"
    assert choose.recommend("fine-tuning").startswith("NF4")
    assert choose.recommend("something else", "yes") == "GGUF Q4_K_M"
    assert choose.recommend("something else").startswith("Is GPU memory short")
    assert len(choose.leaves()) == 5
