"""On how many threads short operations run: on half of them, so that other programs find the other half of the cores free.

PyTorch divides an operation among threads that wait for each other at its end. If another program has taken a core, each of these waits
lasts until the system lets the thread there go on. A loop over thousands of operations of some microseconds then takes many times as long,
and the threads gain it little on a free machine. Longer operations keep all threads (for how long these wait: qlab/__init__.py).

Some results of PyTorch depend on the number of threads in their last bits: Cholesky factors, products in BF16, sums of all elements of a
tensor. The number of threads for them must not depend on what else runs, or the same walk would not make the same bytes twice. What runs
in this context must not use them: element by element, sums along a dimension, products of FP32 matrices with a vector or with small
matrices came out equal to the bit on 1 to 16 threads (tests/support/test_threads.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_halved = ContextVar("halved", default=False)


@contextmanager
def half_the_threads() -> Iterator[None]:
    """Within the context, or a function decorated with it, PyTorch uses half of its threads, at least one.

    Nested contexts halve once. To enter and leave takes a microsecond.
    """
    if _halved.get():
        yield
        return
    threads, mark = torch.get_num_threads(), _halved.set(True)
    torch.set_num_threads(max(1, threads // 2))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        _halved.reset(mark)
