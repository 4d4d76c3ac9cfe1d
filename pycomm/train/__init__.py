# SPDX-License-Identifier: MIT
"""Training on many ranks in five lines: see pycomm.train.context and docs/training.md."""

from pycomm.train.context import Context, init
from pycomm.train.launch import Launch, detect

__all__ = ["Context", "Launch", "detect", "init"]
