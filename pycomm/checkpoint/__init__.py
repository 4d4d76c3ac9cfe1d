# SPDX-License-Identifier: MIT
"""Checkpoints that are there whole or not at all, and go on at any world size and layout.

    with pycomm.checkpoint.Checkpointer("out/checkpoints", every=500) as checkpointer:
        state = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "data": loader}
        begin = checkpointer.load(state) or 0
        checkpointer.on_signal()
        for step in range(begin, steps):
            train(...)
            checkpointer.after_step(step + 1, state)

docs/checkpoint.md says what is in one, how it is written, and what happens when something breaks.
"""

from pycomm.checkpoint.checkpointer import Checkpointer
from pycomm.checkpoint.state import PerRank
from pycomm.errors import CheckpointError

__all__ = ["CheckpointError", "Checkpointer", "PerRank"]
