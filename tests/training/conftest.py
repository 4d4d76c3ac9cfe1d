# SPDX-License-Identifier: MIT
"""Puts the examples on the import path: the models that they train are trained here too."""

import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples"))
# As in rank processes: with other numbers of threads, products of matrices round differently.
torch.set_num_threads(1)
