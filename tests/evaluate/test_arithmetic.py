"""The noise floor: the original against itself in BF16, measured beside a model and without touching either."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from qlab.cli import call
from qlab.evaluate.arithmetic import FLOOR, in_bfloat16
from qlab.evaluate.quality import measure_each, measure_quality
from qlab.evaluate.store.results import read
from qlab.models.loading import load
from qlab.models.opening import OpenedModel


@pytest.fixture(scope="module")
def windows() -> torch.Tensor:
    return torch.randint(1, 4096, (3, 32), generator=torch.Generator().manual_seed(2))


class Counted(nn.Module):
    """A model that counts its windows."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.calls = model, 0

    def forward(self, **given: Any) -> Any:
        self.calls += 1
        return self.model(**given)


def test_the_original_moves_a_little_in_another_arithmetic_and_stays_itself(tiny: OpenedModel, windows: torch.Tensor) -> None:
    model = load(tiny)
    with torch.no_grad():
        exact = model(input_ids=windows).logits
        again = in_bfloat16(model)(input_ids=windows).logits
        assert torch.equal(model(input_ids=windows).logits, exact)
    assert torch.equal(again, again.bfloat16().float())
    floor = measure_quality(in_bfloat16(model), windows, model)
    assert floor.kl is not None
    assert 1e-9 < floor.kl < 1e-4
    assert measure_quality(model, windows, model).kl == pytest.approx(0, abs=1e-9)


def test_it_is_measured_in_one_more_run_of_the_model(tiny: OpenedModel, windows: torch.Tensor) -> None:
    model, other = load(tiny), load(tiny)
    for parameter in other.parameters():
        parameter.data += 0.01
    reference = Counted(model)
    found = measure_each([other, in_bfloat16(model)], windows, reference)
    assert reference.calls == len(windows)
    assert found == [measure_quality(one, windows, model) for one in (other, in_bfloat16(model))]


def test_the_command_shows_it_beside_the_distance(tiny: OpenedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", str(tiny.path), "--window", "16", "--tokens", "64", "--results", str(tmp_path / "results.sqlite")]
    assert call([*words, "--reference", str(tiny.path)]) == 0
    assert f"noise floor, the {FLOOR}: KL 0.0" in capsys.readouterr().out
    assert call([*words, "--reference", str(tiny.path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0 < told["floor"]["kl"] < 1e-4
    assert told["kl"] < told["floor"]["kl"]
    for less in (["--reference", str(tiny.path), "--no-floor"], []):
        assert call([*words, *less, "--json"]) == 0
        assert "floor" not in json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_cache_of_fewer_bits_is_evaluated(tiny: OpenedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "results.sqlite"
    words = ["evaluate", str(tiny.path), "--window", "32", "--tokens", "128", "--reference", str(tiny.path), "--results", str(store)]
    kl = {}
    for cache in ("f16", "q8_0", "q4_0"):
        assert call([*words, "--cache", cache, "--json"]) == 0
        kl[cache] = json.loads(capsys.readouterr().out.splitlines()[-1])["kl"]
    assert kl["f16"] == pytest.approx(0, abs=1e-9)
    assert 1e-9 < 4 * kl["q8_0"] < kl["q4_0"]
    figures = read(store)
    assert len(figures[figures["metric"] == "kl"]) == 3  # none of them takes another's place
    assert call([*words, "--cache", "q2"]) == 2
    assert "a KV cache in 'q2': expected f16" in capsys.readouterr().err
