"""The format that the planner is to count for a model, and the recipe that makes it, with the group size that the model's rows allow."""

from __future__ import annotations

from qlab.plan.choose import recipe_for
from qlab.plan.plan import Shape, of_groups
from qlab.plan.shapes import find_format
from qlab.recipes import parse
from qlab.recipes.fitting import fitted_size
from qlab.recipes.integers import Integers


def planned(asked: str, shape: Shape) -> tuple[str, str, tuple[str, ...]]:
    """The key of qlab.plan.plan.BITS for the format or recipe `asked`, the recipe that makes it (empty where nothing is quantized),
    and a sentence where groups are smaller than asked.

    Raises:
        UserError: no such format.
    """
    chosen = find_format(asked)
    recipe = recipe_for(asked, chosen)
    made = parse(recipe) if recipe else None
    if not isinstance(made, Integers):
        return chosen, recipe, ()
    size, why = fitted_size(made.group_size, shape.block, made.layout.unfit)
    chosen = of_groups(chosen, size)
    return chosen, recipe_for(asked, chosen), (f"Groups of {size} weights instead of {made.group_size}: {why}.",) if why else ()
