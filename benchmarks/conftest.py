# SPDX-License-Identifier: MIT
"""For pytest-benchmark's files here: one thread of computation, and tests/ranks.py in reach."""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
