# SPDX-License-Identifier: MIT
"""The bench as a program of its own: ``python -m pycomm.bench COLLECTIVE``."""

from __future__ import annotations

import argparse
import sys

from pycomm.bench import add_arguments, run

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="pycomm bench", description="Measure collectives.")
    add_arguments(parser)
    sys.exit(run(parser.parse_args()))
