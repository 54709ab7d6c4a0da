"""The metric of predictions, against KL divergences computed from logits."""

from __future__ import annotations

import pytest
import torch

from qlab.models.loading import load, load_tokenizer
from qlab.models.opening import OpenedModel, locate
from qlab.models.texts.windows import read_windows
from qlab.walk.sensitivity import prediction_metric
from qlab.walk.skeleton import Skeleton


@pytest.mark.parametrize("which", ["embedded", "second"])
def test_it_ranks_directions_by_the_kl_divergence_they_cause(which: str, request: pytest.FixtureRequest) -> None:
    source = locate("embedded") if which == "embedded" else locate(str(request.getfixturevalue("second_model")))
    text = read_windows("python-reference", load_tokenizer(source), 64, 8).windows
    metric, model = prediction_metric(Skeleton(source, "cpu"), text), load(source)
    assert metric.diagonal().mean() == pytest.approx(1, rel=1e-3)
    values, directions = torch.linalg.eigh(metric)
    assert values.min() > -1e-3 * values.max()
    norm, head = model.get_submodule("model.norm"), model.get_output_embeddings()
    with torch.inference_mode():
        caught: list[torch.Tensor] = []
        hook = norm.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
        model(text, use_cache=False)
        hook.remove()
        hidden = caught[0]
        reach = 0.02 * hidden.norm(dim=-1, keepdim=True)
        before = head(norm(hidden)).log_softmax(-1)

        def divergence(direction: torch.Tensor) -> float:
            after = head(norm(hidden + reach * direction)).log_softmax(-1)
            return float((before.exp() * (before - after)).sum(-1).mean())

        strong, weak = (sum(divergence(directions[:, column]) for column in chosen) for chosen in (range(-8, 0), range(8)))
    assert strong > 4 * weak


def test_the_gain_of_the_final_norm_is_seen_by_running_it(tiny: OpenedModel) -> None:
    skeleton, model = Skeleton(tiny, "cpu"), load(tiny)
    name, gain = skeleton.head()
    assert name == "model.embed_tokens.weight"  # tied
    assert torch.allclose(gain, model.get_parameter("model.norm.weight"), atol=1e-4)
