"""The smallest kernel. Whoever imports this has numba ready, which takes a second: processes that quantize are copies of one that has."""

from __future__ import annotations

import numpy as np

from qlab.methods.kernels.cpu.compiling import compiled


@compiled
def _fill(number):
    number[0] = 1.0


_fill(np.empty(1))
