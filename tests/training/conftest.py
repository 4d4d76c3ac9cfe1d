# SPDX-License-Identifier: MIT
"""Puts the examples on the import path: the models that they train are trained here too."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples"))
