# SPDX-License-Identifier: MIT
"""Training on many ranks in five lines: see pycomm.train.context and docs/training.md."""

from pycomm.launch import Launch, detect
from pycomm.train.context import Context, init

__all__ = ["Context", "Launch", "detect", "init"]
