# SPDX-License-Identifier: MIT
"""The states of the random generators that training draws from, of this process."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


class RandomState:
    """Python's, NumPy's and torch's global generators, and that of the current CUDA device."""

    def state_dict(self) -> dict[str, Any]:
        """Return their states."""
        cuda = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        return {
            "python": random.getstate(),
            "numpy": np.random.get_state(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if cuda else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set them; a CUDA state without a CUDA device is left aside."""
        random.setstate(state["python"])
        np.random.set_state(state["numpy"])
        torch.set_rng_state(state["torch"])
        if state["cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])
