"""How a call to quantize goes on where one before it was killed, and clears away what that one left.

The state of a walk lies in OUT/.walk-<key>, which names all that its recipes' bytes depend on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from qlab.recipes import WalkedRecipe
from qlab.support.disk.lock import locked
from qlab.support.disk.scratch import PREFIX, discard, sweep
from qlab.support.errors import UserError

LOCK = ".qlab-lock"
STATES = ".walk-*"


def clear_away(recipes: Sequence[WalkedRecipe], wanted: dict[str, dict[str, Any]], out: Path) -> None:
    """Remove what a process has left in `out` that was killed when all of `recipes` were finished; the state of other walks stays."""
    if any(out.glob(STATES)) or any(out.glob(f"{PREFIX}*")) or (out / LOCK).exists():
        with suppress(UserError), locked(out / LOCK, str(out)):
            sweep(out)
            for work in out.glob(STATES):
                if work == work_folder(walked_in(work, recipes), wanted, out):
                    discard(work)


def work_folder(walked: Sequence[WalkedRecipe], wanted: dict[str, dict[str, Any]], out: Path) -> Path:
    """Where the state of a walk with these recipes lies."""
    key = hashlib.sha256(json.dumps([wanted[recipe.name] for recipe in walked], sort_keys=True).encode()).hexdigest()[:12]
    return out / f".walk-{key}"


def walked_in(work: Path, recipes: Sequence[WalkedRecipe]) -> list[WalkedRecipe]:
    """Those of `recipes` that a walk with its state in the folder `work` quantizes."""
    return [recipe for recipe in recipes if (work / recipe.name).is_dir()]


def walk_to_go_on(
    recipes: Sequence[WalkedRecipe], missing: Sequence[WalkedRecipe], wanted: dict[str, dict[str, Any]], out: Path
) -> Sequence[WalkedRecipe]:
    """The recipes of the walk that makes the `missing` ones: more, if one was killed in `out` when some of its artifacts were finished."""
    for work in sorted(out.glob(STATES)):
        walked = walked_in(work, recipes)
        if work == work_folder(walked, wanted, out) and {recipe.name for recipe in missing} <= {recipe.name for recipe in walked}:
            return walked
    return missing
