# SPDX-License-Identifier: MIT
"""How fast text becomes tokens: pycomm.data.prepare_text by number of processes, in turns.

    python benchmarks/data_pipeline.py --processes 1,2 --rounds 3 --json out.json

The text is the standard library's own source. Each run is a process of its own, so that starting
the workers is part of it; importing pycomm is not. The files of all runs must be equal.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

from pycomm.bench.machine import describe
from pycomm.data import prepare_text


def sources(total: int) -> list[Path]:
    """The standard library's files, in order of name, up to so many bytes; no tests."""
    library = Path(sysconfig.get_path("stdlib"))
    left_out = {"test", "tests", "site-packages", "idle_test"}
    files = []
    for path in sorted(library.rglob("*.py")):
        if total > 0 and not left_out & set(path.relative_to(library).parts):
            files.append(path)
            total -= path.stat().st_size
    return files


def run_once(given: argparse.Namespace, processes: int) -> dict[str, Any]:
    """One run, in this process."""
    files = sources(given.bytes)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "text.tokens"
        begin = time.perf_counter()
        made = prepare_text(
            files,
            out,
            tokenizer=given.tokenizer,
            vocab_size=given.vocab_size,
            processes=processes,
            progress=False,
        )
        seconds = time.perf_counter() - begin
        written = [out, *Path(folder).glob("*.json")]
        digest = hashlib.sha256(b"".join(path.read_bytes() for path in written)).hexdigest()
    return {
        "processes": processes,
        "seconds": seconds,
        "tokens": made.header.tokens,
        "bytes": sum(path.stat().st_size for path in files),
        "sha256": digest,
    }


def in_process(given: argparse.Namespace, processes: int) -> dict[str, Any]:
    """One run, in a process of its own."""
    command = [sys.executable, __file__, "--once", str(processes), "--bytes", str(given.bytes)]
    command += ["--tokenizer", given.tokenizer, "--vocab-size", str(given.vocab_size)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout))


def main() -> int:
    """Runs all cases in turns and prints a table; exit code 1 if their files differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", default="1,2", help="numbers to compare, the first first")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bytes", type=int, default=10_000_000, help="of text")
    parser.add_argument("--tokenizer", default="bpe")
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--once", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.once:
        print(json.dumps(run_once(given, given.once)))
        return 0
    cases = [int(one) for one in given.processes.split(",")]
    host = describe()
    runs = [in_process(given, one) for _ in range(given.rounds) for one in cases]
    rows = []
    for processes in cases:
        times = [run["seconds"] for run in runs if run["processes"] == processes]
        median = statistics.median(times)
        rows.append(
            {
                "processes": processes,
                "seconds": times,
                "seconds_median": median,
                "tokens_per_s": runs[0]["tokens"] / median,
                "bytes_per_s": runs[0]["bytes"] / median,
            }
        )
    same = len({run["sha256"] for run in runs}) == 1
    print(f"{runs[0]['bytes']:,} bytes, {runs[0]['tokens']:,} tokens, files equal: {same}")
    for row in rows:
        ratio = rows[0]["seconds_median"] / row["seconds_median"]
        print(
            f"{row['processes']} processes: {row['seconds_median']:.2f} s, "
            f"{row['tokens_per_s']:,.0f} tokens/s, {ratio:.2f} times the first"
        )
    if given.json:
        record = {"host": host, "equal": same, "text": runs[0] | {"seconds": None}, "rows": rows}
        given.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
