"""Lesson 5: where the weights of a layer lie, and where the levels of NF4 and evenly spaced ones do."""

from __future__ import annotations

from torch import Tensor

from qlab.methods.nf4 import normal_levels, uniform_levels
from qlab.show.drawing import Drawing
from qlab.show.figures import histogram
from qlab.workbook.drawn.levels import block_shares, fullest
from qlab.workbook.language.spoken import gettext, say


def levels_picture(layer: str, weight: Tensor) -> Drawing:
    """The histogram of a layer's weights over their block's absmax, with both sets of levels below."""
    shares = block_shares(weight)
    normal, uniform = normal_levels(), uniform_levels()
    title = "{layer}: NF4's fullest level holds {normal:.0%} of the weights, the fullest of 16 uniform ones {uniform:.0%}"
    title = say(title, layer=layer, normal=fullest(shares, normal), uniform=fullest(shares, uniform))
    marks = {"NF4": normal.tolist(), gettext("uniform (control)"): uniform.tolist()}
    return histogram(shares.tolist(), marks, title, gettext("weight over its block's absmax"))
