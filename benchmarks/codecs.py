# SPDX-License-Identifier: MIT
"""Throughput of the wire formats against a memory copy, recorded with the machine it ran on.

    cmake -G Ninja -S . -B build/core -DPYCOMM_BENCHMARKS=ON && cmake --build build/core
    python benchmarks/codecs.py --json codecs.json [core_codecs' arguments, such as levels=avx512]

Runs build/core/core_codecs, whose first lines say what the columns are, and prints what it prints.
`ratio` is the time as a multiple of a memcpy of the same float32 bytes. Exit code: the program's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path

from pycomm.bench.machine import describe

PROGRAM = Path(__file__).parents[1] / "build" / "core" / "core_codecs"
COLUMNS = ("format", "level", "operation", "bytes", "us", "gb_per_s", "ratio")


def rows_of(text: str) -> list[dict[str, object]]:
    """Returns what core_codecs printed, one row for each line."""
    rows = []
    for line in text.splitlines():
        words = line.split()
        numbers: list[object] = [int(words[3]), *(float(word) for word in words[4:])]
        rows.append(dict(zip(COLUMNS, [*words[:3], *numbers], strict=True)))
    return rows


def main() -> int:
    """Runs the program, prints its lines and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--json", type=Path, help="write rows and machine to this file")
    parser.add_argument("--program", type=Path, default=PROGRAM, help="where core_codecs is")
    options, arguments = parser.parse_known_args()
    done = subprocess.run(
        [str(options.program), *arguments], stdout=subprocess.PIPE, text=True, check=False
    )
    print(done.stdout, end="")
    if options.json and done.returncode == 0:
        record = {"machine": describe(), "rows": rows_of(done.stdout)}
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    return done.returncode


if __name__ == "__main__":
    raise SystemExit(main())
