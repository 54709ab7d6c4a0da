"""Eigenvalues of H, and what damping makes of them."""

from __future__ import annotations

import pytest
import torch

from qlab.methods.hessian import damp
from qlab.workbook.drawn.spectrum import MOST, spectrum


def test_damping_lifts_every_eigenvalue_as_damp_does() -> None:
    inputs = torch.randn(30, 48, generator=torch.Generator().manual_seed(0))  # fewer tokens than channels: H is singular
    hessian = inputs.T @ inputs
    found = spectrum(hessian)
    expected = torch.linalg.eigvalsh(damp(hessian.double().clone(), 0.1)).flip(0) / hessian.diagonal().mean()
    torch.testing.assert_close(found.damped(0.1), expected, rtol=1e-5, atol=1e-6)
    assert found.below(1e-4) == pytest.approx(18 / 48)
    assert found.condition() > 1e6
    assert found.condition(0.1) == pytest.approx(float(expected[0] / expected[-1]), rel=1e-4)


def test_of_a_wide_layer_some_channels_are_taken() -> None:
    found = spectrum(torch.eye(MOST + 100))
    assert (found.taken, found.channels) == (MOST, MOST + 100)
    assert found.condition() == 1
