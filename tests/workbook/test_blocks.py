"""Which blocks lesson 4 shows: superblocks on the layers that they divide, blocks of 32 where they divide none."""

import pytest
from torch import nn, randn

from qlab.methods.kquants.blocks import SUPERBLOCK
from qlab.workbook.blocks import plain_groups, plain_name, shown_blocks
from qlab.workbook.language.spoken import VARIABLE, say


def test_superblocks_are_shown_on_the_layers_that_they_divide() -> None:
    layers = {
        f"model.layers.{n}.mlp.{part}": nn.Linear(width, 4) for n in (0, 1) for part, width in (("up_proj", 576), ("down_proj", 1536))
    }
    shown = shown_blocks(layers)
    assert list(shown.layers) == ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]
    assert (shown.kind, shown.fine) == ("Q4_K", "Q6_K")
    assert "2 of 4 layers (down_proj)" in shown.said
    whole = shown_blocks(dict(shown.layers))
    assert "every layer" in whole.said
    assert whole.label == shown.label  # what the claims look for


def test_blocks_of_32_are_shown_where_there_is_no_superblock() -> None:
    layers = {"model.layers.0.mlp.up_proj": nn.Linear(288, 4)}
    shown = shown_blocks(layers)
    assert (shown.kind, shown.fine) == ("Q5_0", "Q8_0")
    assert shown.layers == layers
    weight = randn(4, 288)
    assert 0 < float((shown.control(weight) - weight).norm() / weight.norm()) < 0.2


def test_names_of_ways_are_said_in_french(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = shown_blocks({"a": nn.Linear(SUPERBLOCK, 1)})
    assert plain_groups(32) == "RTN, groups of 32 (4.6 bits)"
    assert shown.by_importance == "Q4_K by importance"
    monkeypatch.setenv(VARIABLE, "fr")
    assert say(plain_name(plain_groups(128))) == "RTN, groupes de 128 (4.2 bits)"
    assert say(shown.by_importance) == "Q4_K par importance"
    assert plain_name(shown.control_label) == "one scale a superblock"
