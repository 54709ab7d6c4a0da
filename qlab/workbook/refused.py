"""What a model cannot be, or have done to it: left out of a lesson with the reason, in place of an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar, cast

from qlab.models.opening import OpenedModel
from qlab.recipes import Recipe, WalkedRecipe
from qlab.recipes.recipe import Walked
from qlab.support.errors import UserError
from qlab.workbook.language.spoken import say

T = TypeVar("T")


def able(things: Mapping[str, T], check: Callable[[T], None]) -> dict[str, T]:
    """Those of `things`, by their names, that `check` raises no UserError of; of each other one a printed sentence says why."""
    found = {}
    for name, thing in things.items():
        if reason := refusal(thing, check):
            print(say("Left out: {name}. {reason}.", name=name, reason=reason))
        else:
            found[name] = thing
    return found


def refusal(thing: T, check: Callable[[T], None]) -> str:
    """What the UserError says that `check` raises of a thing; empty where it raises none."""
    try:
        check(thing)
    except UserError as error:
        return str(error)
    return ""


def check_recipe(recipe: Recipe | None, source: OpenedModel) -> None:
    """Raise the UserError of a model that a recipe cannot take, fitted to it; None stands for the original."""
    if recipe:
        fitted: Recipe = cast(WalkedRecipe, recipe).fitted(source).recipe if isinstance(recipe, Walked) else recipe
        fitted.check(source)
