"""Lesson 6: what the KV cache takes for a context and a number of users."""

from __future__ import annotations

from torch import Tensor

from qlab.plan.plan import SHAPES, Shape, cache_bytes
from qlab.workbook.exercises.answer import Asked
from qlab.workbook.exercises.trial import Case, Mistake, Numbers, Written
from qlab.workbook.language.spoken import say


def kv_cache_bytes(shape: Shape, context: int, users: int) -> float:
    """Bytes of the keys and values in FP16, when `users` hold `context` tokens each."""
    numbers_a_token = 2 * shape.layers * shape.kv_heads * shape.head_size  # a key and a value
    return 2 * numbers_a_token * context * users  # two bytes each


def qlabs(shape: Shape, context: int, users: int) -> float:
    """qlab's own, by which `qlab plan` sizes a deployment."""
    return cache_bytes(shape, context, users)


def cases() -> list[Case]:
    """Models with and without grouped queries."""
    small = Shape(layers=2, hidden=64, intermediate=128, heads=4, kv_heads=2, head_size=32, vocabulary=1000)
    return [
        {"shape": small, "context": 10, "users": 1},
        {"shape": small, "context": 10, "users": 3},
        *({"shape": shape, "context": 4096, "users": 7} for shape in SHAPES.values()),
    ]


def without(factor: str) -> Mistake:
    """The mistake of leaving out one factor of the shape or of the case."""
    said = {
        "layers": "The number of layers is missing: every layer has keys and values of its own.",
        "kv_heads": "The number of KV heads is missing.",
        "head_size": "The head size is missing: a key is a vector of so many numbers.",
        "context": "The context is missing: the cache keeps the keys and values of every token.",
        "users": "The number of users is missing: each has a cache of its own.",
    }

    def way(shape: Shape, context: int, users: int) -> float:
        return kv_cache_bytes(shape, context, users) / {**vars(shape), "context": context, "users": users}[factor]

    return Mistake(way, said[factor])


def times(factor: float, said: str) -> Mistake:
    return Mistake(lambda shape, context, users: factor * kv_cache_bytes(shape, context, users), said)


def differs(case: Case, found: Tensor, expected: float) -> str:
    """By which factor."""
    return say("Your sum is {factor:.4g} times what the cache takes here.", factor=float(found) / expected)


WRITTEN = Written(
    solution=kv_cache_bytes,
    expected=qlabs,
    cases=cases,
    form=Numbers("one number, bytes"),
    mistakes=(
        Mistake(
            lambda shape, context, users: kv_cache_bytes(shape, context, users) * shape.heads / shape.kv_heads,
            "All heads are counted. With grouped queries several heads share one key and value: count `kv_heads`.",
        ),
        Mistake(
            lambda shape, context, users: kv_cache_bytes(shape, context, users) * shape.hidden / (shape.kv_heads * shape.head_size),
            "The hidden size is counted. A token's key in one layer has kv_heads · head_size numbers, which may be far fewer.",
        ),
        times(
            1 / 2,
            "It is half of what is needed. There are keys and values, and a number in FP16 takes 2 bytes: that is twice a factor of 2.",
        ),
        times(1 / 4, "It is a quarter of what is needed: there are keys and values, and a number in FP16 takes 2 bytes."),
        times(8, "These are bits. Divide by 8."),
        times(4, "These are bits, and one factor of 2 is missing: there are keys and values, and a number in FP16 takes 16 bits."),
        times(2, "It is twice as much as needed: a number in FP16 takes 2 bytes, and only keys and values are kept."),
        times(1e-9, "These are GB. Return bytes."),
        *(without(factor) for factor in ("layers", "kv_heads", "head_size", "context", "users")),
    ),
    differs=differs,
    hints=(
        "For one token: what is kept in one layer, and how many layers are there?",
        "A layer keeps a key and a value for each KV head. Each is a vector of `head_size` numbers.",
        "FP16 takes 2 bytes a number. Then multiply by the tokens of a user, and by the users.",
    ),
)


def megabytes(shape: Shape, context: int, users: int) -> float:
    return cache_bytes(shape, context, users) / 1e6


ASKED = {
    "your model's cache": Asked("MB", megabytes, "Your function, with this shape, context and number of users; a MB is a million bytes."),
}
