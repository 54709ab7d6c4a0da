"""How far an error of the hidden states moves the model's predictions, without running the model.

KL(p‖p′) of two predictions whose logits differ by δ is δᵀ·F·δ / 2 to second order, F = diag(p) − p·pᵀ the Fisher matrix of
softmax. With p the tokens' frequencies in the calibration text, and the residual stream's path to the head taken as
straight, an error e of the hidden states costs eᵀ·M·e, M the covariance under p of the head's rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qlab.walk.skeleton import Skeleton

UNSEEN = 0.1  # occurrences granted to tokens that the text does not hold


@torch.no_grad()
def prediction_metric(skeleton: Skeleton, windows: Tensor) -> Tensor:
    """M float32 [hidden, hidden] for calibration windows int64 [windows, length], its mean diagonal 1.

    The head's rows are read a few thousand at a time: it is never whole in memory.
    """
    head, gain = skeleton.head()
    rows = skeleton.checkpoint.shapes[head][0]
    chance = torch.bincount(windows.flatten(), minlength=rows)[:rows].float() + UNSEEN
    chance = (chance / chance.sum()).to(skeleton.device)
    square, mean = torch.zeros(len(gain), len(gain), device=skeleton.device), torch.zeros(len(gain), device=skeleton.device)
    for first, part in skeleton.checkpoint.rows(head):
        part = part.to(skeleton.device).float() * gain
        weights = chance[first : first + len(part)]
        square.addmm_((part * weights[:, None]).T, part)
        mean += weights @ part
    metric = square.sub_(torch.outer(mean, mean))
    return metric / metric.diagonal().mean().clamp(min=1e-30)
