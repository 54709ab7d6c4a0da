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


# Recipes by the format that they make, {} for the group size. For AWQ's layout GPTQ's rounding within AWQ's scales, which lesson 2 compares
# with AWQ alone; for GPTQ's, symmetric grids, which are what vLLM takes there.
AWQ, GPTQ = "awq-gptq-w4g{}", "gptq-w4g{}"
RECIPES = {
    "AWQ": (AWQ,),
    "GGUF Q4_K_M": ("q4_k_m",),
    "NF4 with QLoRA": ("nf4",),
    "AWQ and GPTQ: quantize with both, measure on your own test set, keep the better": (AWQ, GPTQ),
}
PLANNED = {  # by the names of qlab.plan.plan.BITS, without the group size
    "INT8": "gptq-w8g{}", "INT8 W8A8": "smooth-gptq-w8a8", "FP8 W8A8": "rtn-fp8", "AWQ/GPTQ INT4": AWQ,
    "INT3": "gptq-w3g{}", "INT2": "gptq-w2g{}", "GGUF Q4_K_M": "q4_k_m", "NF4 double quant": "nf4",
}  # fmt: skip


def recipes(leaf: str, group_size: int) -> tuple[str, ...]:
    """The recipes, by the names that `qlab quantize --recipe` reads, that carry out a leaf of GUIDE with groups of `group_size`."""
    return tuple(recipe.format(group_size) for recipe in RECIPES[leaf])


def recipe_for(asked: str, format_name: str) -> str:
    """The recipe that makes the format `format_name` of qlab.plan.plan.BITS, of GPTQ's layout if that is what the user `asked` for.

    Empty where nothing is quantized.
    """
    name, _, size = format_name.partition(" g")
    recipe = GPTQ if name == "AWQ/GPTQ INT4" and asked.lower().startswith("gptq") else PLANNED.get(name, "")
    return recipe.format(size or 128)
