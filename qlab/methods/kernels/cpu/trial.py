"""The smallest kernel, to find out whether numba compiles on this machine. Importing it takes a second, for numba to make itself ready: a
run's lessons are copies of a process that has done so."""

from __future__ import annotations

import numpy as np

from qlab.methods.kernels.cpu.compiling import compiled


@compiled
def _fill(number):
    number[0] = 1.0


_fill(np.empty(1))
