"""Perplexity and KL against independent computations."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from qlab.artifacts.artifact import make_artifact
from qlab.evaluate.kept import next_token_logits
from qlab.evaluate.quality import by_position, by_token, in_parts, measure_quality
from qlab.models.loading import load, load_tokenizer
from qlab.models.opening import OpenedModel, locate
from qlab.recipes import parse
from qlab.support.errors import UserError


@pytest.fixture(scope="module")
def windows() -> torch.Tensor:
    return torch.randint(1, 4096, (5, 48), generator=torch.Generator().manual_seed(0))


def test_perplexity_is_transformers_own_loss(tiny: OpenedModel, windows: torch.Tensor) -> None:
    model = load(tiny)
    losses = [model(input_ids=window[None], labels=window[None]).loss.item() for window in windows]
    quality = measure_quality(model, windows)
    assert quality.perplexity == pytest.approx(math.exp(sum(losses) / 5), rel=1e-5)
    assert quality.tokens == 5 * 47
    spread = torch.tensor(losses).std().item() / math.sqrt(5)
    assert quality.stderr == pytest.approx(quality.perplexity * spread, rel=1e-3)


def test_perplexity_is_lm_evals(windows: torch.Tensor) -> None:
    """lm-eval's rolling log-likelihood of one window's text, by its own code, on the embedded model."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from qlab.models.texts.builtin import python_reference

    source = locate("embedded")
    model, tokenizer = load(source), load_tokenizer(source)
    text = python_reference()[:1200]
    ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
    assert ids.shape[1] < 512
    judge = HFLM(pretrained=model, tokenizer=tokenizer, max_length=1024, device="cpu")
    (total,) = judge.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)], disable_tqdm=True)
    # It puts a prefix token before the text and predicts every token of it from there on: so does a window that begins with it.
    window = torch.cat([torch.tensor([[judge.prefix_token_id]]), ids], dim=1)
    assert measure_quality(model, window.expand(2, -1)).perplexity == pytest.approx(math.exp(-total / ids.shape[1]), rel=1e-4)


def test_a_model_is_at_distance_zero_from_itself_and_not_from_another(tiny: OpenedModel, windows: torch.Tensor) -> None:
    model, other = load(tiny), load(tiny)
    same = measure_quality(model, windows, model)
    assert same.kl == pytest.approx(0, abs=1e-7)
    assert same.top1 == 1
    assert same.loss_increase == 0
    for parameter in other.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    moved = measure_quality(other, windows, model)
    assert moved.kl > 1e-4
    assert moved.top1 < 1
    logits, expected = (m(input_ids=windows[:1]).logits[0, :-1].log_softmax(-1) for m in (other, model))
    direct = torch.nn.functional.kl_div(logits, expected, log_target=True, reduction="batchmean").item()
    assert measure_quality(other, windows[:1].expand(2, -1), model).kl == pytest.approx(direct, rel=1e-4)


def test_what_cannot_be_measured_is_refused(tiny: OpenedModel) -> None:
    with pytest.raises(UserError, match="at least two tokens"):
        measure_quality(load(tiny), torch.ones(3, 1, dtype=torch.int64))
    with pytest.raises(UserError, match="no standard error"):
        measure_quality(load(tiny), torch.ones(1, 3, dtype=torch.int64))


def test_perplexity_of_a_gguf_file_is_llamacpps_by_its_own_protocol(calibration: torch.Tensor, tmp_path: Path) -> None:
    """llama-perplexity's protocol: a window whose second half is scored. llama.cpp's own log-probabilities, asked token by token.

    It rounds activations to 8 bits, so the two agree to a hundredth of a nat, not to rounding.
    """
    from qlab.models.texts.builtin import python_reference
    from qlab.serve.runtimes.llamacpp import LlamaCpp, post
    from qlab.serve.server import on_free_port, serving

    source = locate("embedded")
    made = make_artifact(parse("q8_0"), source, calibration, str(tmp_path))
    ids = load_tokenizer(source).encode(python_reference()[:3000], add_special_tokens=False)[:256]
    theirs = []
    with serving(LlamaCpp(), on_free_port(made.path, 512, 1)) as server:
        for place in range(128, 256):
            asked = {"prompt": ids[:place], "n_predict": 1, "n_probs": 4096, "cache_prompt": True, "temperature": -1.0}
            (position,) = post(server.url, "/completion", asked)["completion_probabilities"]
            theirs.append(next(entry["logprob"] for entry in position["top_logprobs"] if entry["id"] == ids[place]))
    logits = next_token_logits(load(made.source), torch.tensor([ids]))[127:].detach()
    ours = -torch.nn.functional.cross_entropy(logits, torch.tensor(ids[128:]))
    assert math.exp(-sum(theirs) / 128) == pytest.approx(math.exp(-float(ours)), rel=0.01)


def test_single_tokens_are_told_apart_from_the_mean() -> None:
    kl = torch.linspace(0, 1, 101, dtype=torch.float64)
    top1, sure = torch.ones(101, dtype=torch.float64), torch.zeros(101, dtype=torch.float64)
    top1[:10], sure[5:25] = 0, 1  # 5 of the 20 sure ones flipped
    found = by_token(torch.stack([kl, top1, sure]))
    assert found == pytest.approx({"kl_median": 0.5, "kl_p90": 0.9, "kl_p99": 0.99, "kl_max": 1.0, "flips_sure": 0.25})
    assert by_token(torch.stack([kl, top1, 0 * sure]))["flips_sure"] is None


def test_the_distance_by_place_and_by_confidence() -> None:
    kl = torch.arange(16, dtype=torch.float64).view(2, 8)
    top1, surest = torch.ones(2, 8, dtype=torch.float64), torch.full((2, 8), 0.1, dtype=torch.float64)
    surest[:, 6:], top1[1, 7] = torch.tensor([0.6, 1.0], dtype=torch.float64), 0
    found = in_parts(kl, top1, surest)
    assert found["kl_by_place"] == [4.5, 6.5, 8.5, 10.5]
    assert found["kl_by_confidence"] == [6.5, None, 10.0, 11.0]  # the surest belong to the last part, none to the second
    assert found["flips_by_confidence"] == [0.0, None, 0.0, 0.5]
    assert in_parts(kl[:, :2], top1[:, :2], surest[:, :2])["kl_by_place"] == [4.0, 5.0, None, None]


def test_who_is_sure_is_the_reference() -> None:
    reference = torch.tensor([[4.0, 0.0, 0.0], [0.0, 0.1, 0.0]])  # sure of the first, then of none
    model = torch.tensor([[0.1, 0.0, 0.0], [4.0, 0.0, 0.0]])
    found = by_position(model, torch.tensor([1, 1]), reference)
    assert found["sure"].tolist() == [1.0, 0.0]
    torch.testing.assert_close(found["surest"], reference.softmax(-1).max(-1).values)
    assert found["top1"].tolist() == [1.0, 0.0]


class Logits(Sequence[torch.Tensor]):
    """Logits that are made when they are asked for, and must be forgotten then."""

    def __init__(self) -> None:
        self.made = list[Any]()

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> torch.Tensor:  # type: ignore[override]
        assert not [found for found in self.made if found() is not None]
        logits = torch.randn(47, 4096)
        self.made.append(weakref.ref(logits))
        return logits


def test_a_window_s_logits_are_forgotten_before_the_next_one_s_are_made(windows: torch.Tensor) -> None:
    model, reference = Logits(), Logits()
    assert measure_quality(model, windows, reference).kl
    assert len(model.made) == len(reference.made) == 5
