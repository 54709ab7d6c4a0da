"""What a manifest says of a recipe."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from qlab.formats.imatrix import ImatrixFile
from qlab.recipes import describe, parse
from qlab.recipes.recipe import Walked


@dataclass(frozen=True)
class Odd(Walked):
    """A recipe with an option of any kind."""

    option: Any


def test_a_recipe_is_told_as_json_holds_it(tmp_path: Path) -> None:
    assert describe(Odd((1, ("a", None), 0.5, True))) == {"recipe": "Odd", "option": [1, ["a", None], 0.5, True]}  # type: ignore[arg-type]
    found = describe(parse("awq-w4g64"))
    assert (found["recipe"], found["bits"], found["group_size"]) == ("Integers", 4, 64)
    assert json.loads(json.dumps(found)) == found
    file = tmp_path / "i.gguf"
    file.write_bytes(b"some")
    assert describe(Odd((ImatrixFile(file),)))["option"] == [str(ImatrixFile(file))]  # type: ignore[arg-type]


@pytest.mark.parametrize("option", [torch.float16, {1}, object(), b"a", Path("/a/place/of/this/machine"), [complex(1)]])
def test_what_json_cannot_hold_is_no_option(option: Any) -> None:
    """A text made of it might differ from run to run, or name a place of this machine."""
    with pytest.raises(TypeError, match="which no manifest can hold"):
        describe(Odd(option))  # type: ignore[arg-type]
