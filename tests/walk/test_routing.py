"""Which tokens stand for an expert: its own, and where these are few, others from all over the text; AWQ's scale before experts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qlab.walk import routing
from qlab.walk.block import Block
from qlab.walk.folding import fold_before_experts
from qlab.walk.grouping import mixtures
from qlab.walk.routing import Routing, routed
from qlab.walk.skeleton import Skeleton
from qlab.walk.state.activations import Activations
from qlab.walk.state.streams import Streams
from tests.walk.families import FAMILIES, make


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Routing:
    monkeypatch.setattr(routing, "RARE", 4)
    inputs = Activations(tmp_path / "inputs", (2, 8, 3))
    inputs.append(torch.arange(48.0).view(16, 3))
    chosen = torch.zeros(16, 1, dtype=torch.int16)
    chosen[5], chosen[9] = 1, 3  # 3 is beyond the last: no expert
    return Routing(inputs, 3, [chosen[:8], chosen[8:]])


def test_an_expert_is_shown_its_tokens_and_a_rare_one_others_too(given: Routing) -> None:
    assert given.counts() == [14, 1, 0]
    assert torch.equal(given.shown(0).numbers, torch.tensor([n for n in range(16) if n not in (5, 9)]))
    once, never = given.shown(1).numbers, given.shown(2).numbers
    assert len(once) == len(never) == 4
    assert 5 in once.tolist()
    assert never.tolist() == [0, 5, 10, 15]
    (rows,) = given.shown(2).batches(1)
    assert torch.equal(rows, torch.tensor([[0.0, 1, 2], [15, 16, 17], [30, 31, 32], [45, 46, 47]]))


def test_the_manifest_is_told_who_was_rare(given: Routing) -> None:
    assert given.note().startswith("experts never given a token: 2; given fewer than 4 tokens: 1 (1). Their statistics are of 4 tokens")
    assert Routing(given.inputs, 1, given.chosen).note() == ""


@pytest.mark.parametrize(
    ("family", "experts", "gate", "shared"),
    [
        ("mixtral", "mlp.experts", "mlp.gate", 0),
        ("qwen2_moe", "mlp.experts", "mlp.gate", 2),
        ("deepseek_v3", "mlp.experts", "mlp.gate", 2),
        ("llama4", "feed_forward.experts", "feed_forward.router", 2),
    ],
)
@torch.no_grad()
def test_a_scale_before_experts_leaves_the_block_as_it_was(
    family: str, experts: str, gate: str, shared: int, tmp_path: Path, calibration: torch.Tensor
) -> None:
    source = make(tmp_path / family, FAMILIES[family])
    skeleton = Skeleton(source, "cpu")
    hidden = Activations(tmp_path / "hidden", (8, 64, 64))
    skeleton.embed(calibration, hidden)
    block: Block = skeleton.block(1, 64)
    inputs = hidden.pick(torch.arange(1))
    block.experts = mixtures(block, [experts], inputs)
    mixture, before = block.experts[experts], block.forward(inputs)
    assert mixture.norm == "post_attention_layernorm"
    assert len(mixture.layers) == shared
    assert gate in mixture.gates
    assert ("mlp.shared_expert_gate" in mixture.gates) == (family == "qwen2_moe")
    with routed(block, lambda path, width: Activations(tmp_path / "routed", (8, 64, width))) as seen:
        list(block.outputs(hidden, 4))
    was = block.layer(f"{experts}.1.up_proj").weight.clone()
    scale = fold_before_experts(block, experts, seen[experts], lambda weight, *_: torch.rand(weight.shape[1]) + 0.5)
    assert scale is not None
    torch.testing.assert_close(block.layer(f"{experts}.1.up_proj").weight, was * scale)
    torch.testing.assert_close(block.forward(inputs), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("hold", [False, True])
def test_what_passes_through_a_block_is_found_again(hold: bool, tmp_path: Path) -> None:
    streams = Streams(tmp_path, (2, 4, 8), hold)
    passing = streams.passing("original.mlp.experts", 3, 5)
    rows = torch.randn(8, 5)
    passing.put(0, rows[:4])
    passing.put(4, rows[4:])
    assert torch.equal(passing.tokens(torch.tensor([6, 1, 1])), rows[[6, 1, 1]])
    assert passing.path.exists() != hold
    streams.finish(3, lambda: None)
    streams.close()
    assert not list(tmp_path.iterdir())
