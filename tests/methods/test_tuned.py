"""Tuning by gradient."""

from __future__ import annotations

import pytest
import torch

from qlab.methods.gptq import compensated
from qlab.methods.tuned import Run, SoftIntegers, tune

HIDDEN = 64


def block(parameters: dict[str, torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
    return inputs + torch.tanh(inputs @ parameters["up.weight"].T * parameters["gain"]) @ parameters["down.weight"].T


def test_the_block_comes_closer_to_the_original_and_the_form_stays() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {"up": torch.randn(HIDDEN, HIDDEN, generator=generator) * 0.2, "down": torch.randn(HIDDEN, HIDDEN, generator=generator) * 0.2}
    inputs = torch.randn(32, 16, HIDDEN, generator=generator)
    original = block({f"{name}.weight": weight for name, weight in weights.items()} | {"gain": torch.ones(HIDDEN)}, inputs)
    hessian = inputs.view(-1, HIDDEN).T @ inputs.view(-1, HIDDEN)
    starts = {name: compensated(weight, hessian, 3, 32, False, "given", True) for name, weight in weights.items()}
    soft = {name: SoftIntegers(*start) for name, start in starts.items()}
    rest = {"gain": torch.ones(HIDDEN)}

    def loss(layers: dict[str, torch.Tensor], gain: torch.Tensor) -> float:
        return float((block(layers | {"gain": gain}, inputs) - original).square().mean())

    before = loss({f"{name}.weight": start.dequantize() for name, (start, _) in starts.items()}, torch.ones(HIDDEN))
    pieces = [(inputs[at : at + 4], original[at : at + 4]) for at in range(0, 32, 4)] * 10
    tune(block, soft, rest, pieces, 80, torch.eye(HIDDEN))
    finished = {name: layer.finish() for name, layer in soft.items()}
    assert loss({f"{name}.weight": layer.dequantize() for name, layer in finished.items()}, rest["gain"]) < 0.8 * before
    for name, layer in finished.items():
        start = starts[name][0]
        assert layer.codes.max() <= 7
        assert torch.equal(layer.zeros, start.zeros)
        assert torch.equal(layer.scales, layer.scales.half().float())
        assert 0 < (layer.codes != start.codes).float().mean() < 0.5
        moved = soft[name].weight().detach()
        assert torch.allclose(layer.dequantize(), moved)  # what is stored is what was tuned
    assert not rest["gain"].requires_grad


def test_gradients_are_those_of_rounding_that_passes_straight_through() -> None:
    generator = torch.Generator().manual_seed(2)
    weight, inputs = torch.randn(8, HIDDEN, generator=generator), torch.randn(200, HIDDEN, generator=generator)
    start, rounded = compensated(weight, inputs.T @ inputs, 2, 32, False, "group", True)
    soft, wanted = SoftIntegers(start, rounded), torch.randn(8, HIDDEN, generator=generator)
    with torch.no_grad():
        soft.latent[0, 0], soft.latent[0, 1] = -3.0, 7.0  # beyond the grid
    (soft.weight() * wanted).sum().backward()

    latent, log_scale = soft.latent.detach().clone().requires_grad_(), soft.log_scale.detach().clone().requires_grad_()
    inside = latent.clamp(-0.5, 3.5)
    codes = inside + (inside.round().clamp(0, 3) - inside).detach()
    scale = start.scales * log_scale.exp()
    chain = ((codes.view(8, 2, 32) - start.zeros[..., None]) * scale[..., None]).view(8, HIDDEN)
    (chain * wanted).sum().backward()
    assert torch.allclose(soft.weight(), chain)
    assert torch.allclose(soft.latent.grad, latent.grad)
    assert torch.allclose(soft.log_scale.grad, log_scale.grad, rtol=1e-4, atol=1e-6)
    assert (latent.grad[0, :2] == 0).all()


def test_before_the_first_step_it_is_what_gptq_made() -> None:
    generator = torch.Generator().manual_seed(1)
    weight, inputs = torch.randn(8, HIDDEN, generator=generator), torch.randn(200, HIDDEN, generator=generator)
    start, rounded = compensated(weight, inputs.T @ inputs, 4, 32, False, "group", True)
    soft = SoftIntegers(start, rounded)
    assert torch.equal(soft.finish().codes, start.codes)
    assert torch.equal(soft.weight().detach(), start.dequantize())


def test_of_codes_the_running_mean_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    weight, inputs = torch.randn(HIDDEN, HIDDEN, generator=generator), torch.randn(4, 16, HIDDEN, generator=generator)
    flat = inputs.view(-1, HIDDEN)
    soft = SoftIntegers(*compensated(weight, flat.T @ flat, 3, 32, False, "group", True))
    seen, step = [], torch.optim.Adam.step

    def noting(self: torch.optim.Adam) -> None:
        step(self)
        seen.append(soft.latent.detach().clone())

    monkeypatch.setattr(torch.optim.Adam, "step", noting)
    run: Run = lambda parameters, inputs: inputs @ parameters["layer.weight"].T  # noqa: E731
    tune(run, {"layer": soft}, {}, [(inputs, torch.randn(4, 16, HIDDEN, generator=generator))] * 4, 4, torch.eye(HIDDEN))
    assert not torch.allclose(seen[0], seen[-1])
    assert torch.allclose(soft.latent.detach(), torch.stack(seen).mean(0), atol=1e-6)  # so early, of all steps alike
