"""The guide's decision tree as data, walked with the reader's answers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """A question with its answers, each leading to another question or to a recommendation."""

    text: str
    answers: dict[str, Question | str]


GUIDE = Question(
    "What will the model be used for?",
    {
        "production on vLLM or TGI": "AWQ",
        "Ollama or llama.cpp": "GGUF Q4_K_M",
        "fine-tuning": "NF4 with QLoRA",
        "something else": Question(
            "Is GPU memory short, so that layers must stay on the CPU?",
            {"yes": "GGUF Q4_K_M", "no": "AWQ and GPTQ: quantize with both, measure on your own test set, keep the better"},
        ),
    },
)


def recommend(*answers: str, tree: Question = GUIDE) -> str:
    """Walk the tree; the recommendation, or the next question where answers are missing.

    Raises:
        KeyError: an answer that the question does not offer.
    """
    node: Question | str = tree
    for answer in answers:
        if isinstance(node, str):
            break
        node = node.answers[answer]
    return node if isinstance(node, str) else f"{node.text} ({' / '.join(node.answers)})"


def leaves(tree: Question = GUIDE, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], str]:
    """Every way through the tree, and where it ends."""
    found: dict[tuple[str, ...], str] = {}
    for answer, node in tree.answers.items():
        found |= {(*path, answer): node} if isinstance(node, str) else leaves(node, (*path, answer))
    return found


RECIPES = {
    "AWQ": ("awq-w4g128",),
    "GGUF Q4_K_M": ("q4_k_m",),
    "NF4 with QLoRA": ("nf4",),
    "AWQ and GPTQ: quantize with both, measure on your own test set, keep the better": ("awq-w4g128", "gptq-w4g128"),
}
"""The recipes (names that qlab.recipes.parse reads) that carry out a leaf of GUIDE: `qlab quantize --recipe NAME`."""
