"""What experiments take beside a model at rest: bytes at their peak, from the shapes of its tensors.

Each function takes the layout, the tokens of an evaluation window, and those of the calibration windows that are trained on at a time.
"""

from __future__ import annotations

from math import prod

from qlab.models.layout import Layout

PART = 1 << 25  # numbers of a product that a GPU computes at a time (qlab.methods.grid.rows_at_once)
RANK, OF_A_FACTOR = 16, 16.0  # of adapters as they are trained; bytes of a number in them, its gradient, and what Adam keeps of it


def predicting(layout: Layout, length: int, _: int = 0) -> float:
    """The head in FP32 with a window's logits; or these, those that they are held against, and what is computed of them at a time."""
    logits = logits_of(layout, length)
    return max(head(layout) + logits, comparing(logits))


def by_block(layout: Layout, length: int, _: int = 0) -> float:
    """An artifact a block at a time: the block in FP32; or its head, which stays in FP32, and logits as above."""
    return max(block(layout) + 2 * largest(layout), head(layout) + comparing(logits_of(layout, length)))


def changing(layout: Layout, length: int, _: int = 0) -> float:
    """A layer rounded to nearest each time that it computes, and predicting."""
    return max(6 * largest(layout), predicting(layout, length))


def drawing(layout: Layout, length: int, _: int = 0) -> float:
    """The weights of a block in FP32, held for a figure while weights are changed and artifacts judged."""
    return block(layout) + max(changing(layout, length), by_block(layout, length))


def observing(layout: Layout, *_: int) -> float:
    """The H of every layer of a block, and of the largest the parts of its products."""
    return 4.0 * sum(width**2 for _, width in layout.linear.values()) / layout.count + widest(layout)


def rounding(layout: Layout, *_: int) -> float:
    """The largest layer rounded by GPTQ, its weight in FP32 and H included: three more matrices of H's size while it is factored, or a
    second H and six copies of the weight as codes are settled."""
    return max(
        4.0 * width * out + 4.0 * width**2 + max(12.0 * width**2, 4.0 * width**2 + 24.0 * width * out)
        for out, width in layout.linear.values()
    )


def settling(layout: Layout, *_: int) -> float:
    """The largest layer in blocks of llama.cpp's, settled: its weight, H as it is and as it is trusted, and codes as they are searched."""
    return 5 * largest(layout) + 3 * widest(layout)


def training(layout: Layout, _: int, tokens: int) -> float:
    """Adapters with what Adam keeps, what each block was given, and the larger of a block's activations, the head with its logits or on the
    way back their gradients, and the loss, for which no head is held."""
    sides = float(sum(out + width for out, width in layout.linear.values()))
    logits = logits_of(layout, tokens)
    once = max(head(layout) + logits, 4 * logits, 8.0 * tokens * sides / layout.count + largest(layout))
    return OF_A_FACTOR * RANK * sides + 4.0 * tokens * layout.count * layout.hidden + once


def comparing(logits: float) -> float:
    """Logits, those that they are held against, and five products of a part of them (qlab.evaluate.quality.by_position)."""
    return 2 * logits + 5 * min(4.0 * PART, logits)


def logits_of(layout: Layout, length: int) -> float:
    """Logits of a window in FP32."""
    return 4.0 * length * layout.shapes[layout.head][0]


def head(layout: Layout) -> float:
    """The output head in FP32."""
    return 4.0 * prod(layout.shapes[layout.head])


def block(layout: Layout) -> float:
    """The linear layers of a block in FP32."""
    return 4.0 * sum(map(prod, layout.linear.values())) / layout.count


def largest(layout: Layout) -> float:
    """The largest linear layer in FP32."""
    return 4.0 * max(map(prod, layout.linear.values()))


def widest(layout: Layout) -> float:
    """The largest H."""
    return 4.0 * max(width for _, width in layout.linear.values()) ** 2


EXPERIMENTS = (predicting, by_block, changing, drawing, observing, rounding, settling, training)
