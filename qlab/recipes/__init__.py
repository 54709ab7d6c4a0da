"""Recipes, a family a file, and `parse`, which reads the names that people type. The peers' are in qlab.peers.recipes."""

from __future__ import annotations

from typing import cast

from qlab.formats.gguf.mix import check_mix
from qlab.recipes.eight_bits import parse_eight_bits
from qlab.recipes.fp8 import FP8, parse_fp8
from qlab.recipes.gguf import GGUF, Search
from qlab.recipes.integers import Integers, parse_integers
from qlab.recipes.nf4 import NF4
from qlab.recipes.recipe import Details, Fitted, Recipe, WalkedRecipe, describe, details
from qlab.support.errors import UserError

__all__ = ["FP8", "GGUF", "NF4", "Details", "Fitted", "Integers", "Recipe", "WalkedRecipe", "describe", "details", "parse"]


def parse(name: str) -> WalkedRecipe:
    """The recipe of a short name, such as awq-w4g128, gptq-w4g128-asym-actorder, tuned-w3g64, nf4, q4_k_m.

    Raises:
        UserError: no such recipe.
    """
    if name in ("nf4", "nf4-single", "fp4", "fp4-single"):
        return NF4(name[:3], not name.endswith("-single"))
    if recipe := parse_integers(name) or parse_eight_bits(name) or parse_fp8(name):
        return recipe
    mix, dash, search = name.partition("-")
    try:
        check_mix(mix if not dash or search in ("importance", "plain") else name)
    except UserError as error:
        raise UserError(
            f"no recipe {name!r}: expected such as awq-w4g128, gptq-w4g128, gptq-w4g128-asym-actorder, awq-gptq-w4g128, tuned-w4g128, "
            f"rtn-w4g128, smooth-gptq-w8a8, rtn-fp8, nf4, or a GGUF mix, alone or with -importance or -plain ({error})"
        ) from error
    return GGUF(mix, cast(Search, search or "settled"))
