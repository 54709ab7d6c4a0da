"""How much errors of a block's output matter, against KL divergences and gradients of the whole model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from qlab.artifacts.budget import disk_needed
from qlab.models.loading import load, load_tokenizer
from qlab.models.opening import OpenedModel, locate
from qlab.models.texts.windows import read_windows
from qlab.recipes import parse
from qlab.walk.sensitivity import AT_ONCE, TOKENS, _of_predictions, evenly, gradients_at_blocks, metric_of
from qlab.walk.state.activations import Activations


def measured(source: OpenedModel, text: Tensor, folder: Path) -> list[Activations]:
    """The gradients at every block's output."""
    shape = (*evenly(text).shape, source.layout.hidden)
    found = [Activations(folder / f"gradients-{index}.bin", shape) for index in range(source.layout.count)]
    gradients_at_blocks(source, text, "cpu", found.__getitem__, folder)
    assert sorted(folder.iterdir()) == sorted(each.path for each in found)  # what blocks read is gone
    return found


@pytest.mark.parametrize("which", ["embedded", "second"])
def test_directions_are_ranked_by_the_kl_divergence_they_cause(which: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    source = locate("embedded") if which == "embedded" else locate(str(request.getfixturevalue("second_model")))
    text = read_windows("python-reference", load_tokenizer(source), 64, 8).windows
    model = load(source)
    with torch.inference_mode():
        before = model(text, use_cache=False).logits.log_softmax(-1)
    for index, gradients in enumerate(measured(source, text, tmp_path)):
        metric = metric_of(gradients, torch.device("cpu"))
        assert metric.diagonal().mean() == pytest.approx(1, rel=1e-3)
        values, directions = torch.linalg.eigh(metric)
        assert values.min() > -1e-3 * values.max()

        def divergence(direction: Tensor, block: str) -> float:
            def moved(_: object, __: object, output: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
                hidden = output[0] if isinstance(output, tuple) else output
                hidden = hidden + 0.5 * direction
                return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

            hook = model.get_submodule(block).register_forward_hook(moved)
            with torch.inference_mode():
                after = model(text, use_cache=False).logits.log_softmax(-1)
            hook.remove()
            return float((before.exp() * (before - after)).sum(-1).mean())

        block = source.layout.block(index).removesuffix(".")
        strong, weak = (sum(divergence(directions[:, column], block) for column in chosen) for chosen in (range(-4, 0), range(4)))
        assert strong > 4 * weak, index


def test_gradients_are_led_back_as_the_whole_model_would(tiny: OpenedModel, tmp_path: Path) -> None:
    text = torch.arange(2 * 3 * AT_ONCE).view(2, -1) % 50
    found = measured(tiny, text, tmp_path)
    model, seen = load(tiny, torch.float32), list[Tensor]()
    for index in range(tiny.layout.count):
        model.get_submodule(tiny.layout.block(index).removesuffix(".")).register_forward_hook(
            lambda _, __, output: seen.append(output[0] if isinstance(output, tuple) else output)
        )
    embedded = model.get_input_embeddings()(text).detach().requires_grad_()
    model(inputs_embeds=embedded, use_cache=False)
    last = torch.cat(list(found[-1].batches(1)))
    assert float(last.abs().amin(-1).amax()) > 0
    for index in range(tiny.layout.count - 1):
        expected = torch.autograd.grad(seen[-1], seen[index], last, retain_graph=True)[0]
        apart = (torch.cat(list(found[index].batches(1))) - expected).norm() / expected.norm()
        assert apart < 0.02, index  # products are in BF16 where the machine can


def test_the_mean_of_what_is_drawn_is_the_fisher_matrix() -> None:
    class Head:
        def logits(self, hidden: Tensor) -> Tensor:
            return hidden[0]

    chosen = torch.tensor([0.5, 0.0, -1.0, 2.0])
    drawn = _of_predictions(Head(), chosen.expand(1, 20000, 4).clone(), torch.Generator().manual_seed(1))[0]  # type: ignore[arg-type]
    chance = chosen.softmax(-1)
    torch.testing.assert_close(drawn.T @ drawn / len(drawn), chance.diag() - torch.outer(chance, chance), atol=5e-3, rtol=0)


def test_the_disk_that_is_predicted_is_used(tiny: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, most, append = torch.arange(2 * 48).view(2, 48) % 50, 0, Activations.append

    def watched(activations: Activations, batch: Tensor) -> None:
        nonlocal most
        append(activations, batch)
        most = max(most, sum(file.stat().st_size for file in tmp_path.rglob("*.bin")))

    monkeypatch.setattr(Activations, "append", watched)
    measured(tiny, text, tmp_path)
    windows = (len(text), text.shape[1])
    tuned, sequential = (disk_needed(tiny, [parse(name)], windows) for name in ("tuned-w4g32", "gptq-w4g32-sequential"))
    assert 0.75 * (tuned - sequential) < most <= tuned - sequential


def test_the_text_is_gone_over_evenly() -> None:
    windows = torch.arange(640 * 256).view(640, 256)
    chosen = evenly(windows)
    assert chosen.numel() == TOKENS
    assert torch.equal(chosen[:, 0], torch.arange(8) * 80 * 256)
    assert len(evenly(windows[:3])) == 3
    assert len(evenly(torch.zeros(2, 4096))) == 1
