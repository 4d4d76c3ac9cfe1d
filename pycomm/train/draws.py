# SPDX-License-Identifier: MIT
"""Random numbers that are the same wherever and whenever something is drawn again."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds the CPU generators of torch, NumPy and Python, and gives their states back; local.

    Args:
        seed: 0 to 2^63 - 1.
    """
    kept = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % (1 << 32))
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(kept[0])
        np.random.set_state(kept[1])
        random.setstate(kept[2])
