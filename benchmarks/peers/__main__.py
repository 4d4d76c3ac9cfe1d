# SPDX-License-Identifier: MIT
"""The command: python -m benchmarks.peers run|report|install."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from benchmarks.peers import contenders
from benchmarks.peers.cells import FULL_SIZES, QUICK_SIZES, list_cells, parse_size
from benchmarks.peers.install import install
from benchmarks.peers.interleave import Effort, World
from benchmarks.peers.plot import plot
from benchmarks.peers.results import Results
from benchmarks.peers.table import groups_of, report, sources


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure; adds to --json if the file exists")
    run.add_argument("collectives", nargs="?", default="all_reduce", help="with commas")
    run.add_argument("--sizes", default="", help=f"default {QUICK_SIZES}; full: {FULL_SIZES}")
    run.add_argument("--full", action="store_true", help="all sizes")
    run.add_argument("--dtype", default="float32", help="with commas")
    run.add_argument("--world", default="2,4", help="numbers of ranks, with commas")
    run.add_argument("--contenders", default="", help="names with commas; default all")
    run.add_argument("--contender", action="append", default=[], metavar="NAME=COMMAND")
    run.add_argument("--seconds", type=float, default=0.2, help="per contender and cell")
    run.add_argument("--rounds", type=int, default=8)
    run.add_argument("--patience", type=float, default=30.0, help="seconds until a hang is one")
    run.add_argument("--peers", type=Path, default=contenders.PEERS)
    run.add_argument("--json", type=Path)
    build = commands.add_parser("install", help="download the peers, compile the ranks")
    build.add_argument("--peers", type=Path, default=contenders.PEERS)
    show = commands.add_parser("report", help="tables and plots of a file that run wrote")
    show.add_argument("json", type=Path)
    show.add_argument("--markdown", action="store_true")
    show.add_argument("--plot", type=Path, metavar="PNG|SVG")
    return parser


def _run(args: argparse.Namespace) -> int:
    sizes = args.sizes or (FULL_SIZES if args.full else QUICK_SIZES)
    extras = [contenders.extra(text) for text in args.contender]
    chosen = contenders.choose([name for name in args.contenders.split(",") if name], extras)
    results = Results(args.json)
    wrong = 0
    for world in [int(one) for one in args.world.split(",")]:
        cells = list_cells(
            args.collectives.split(","),
            [parse_size(size) for size in sizes.split(",")],
            args.dtype.split(","),
            [world],
        )
        effort = Effort(args.seconds, args.rounds, args.patience)
        done = []
        with World(world, effort, _log, args.peers).residents(chosen) as residents:
            for name, one in residents.running.items():
                results.run["versions"][name] = one.version
            for cell in cells:
                outcome = residents.run(cell)
                ordered = {one.name: outcome[one.name] for one in chosen}
                results.add(cell, ordered)
                results.save()
                done.append({**vars(cell), "contenders": ordered})
                wrong += sum(one.get("wrong", 0) for one in outcome.values())
        print(report(done), flush=True)
    return 1 if wrong else 0


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Exit code: 0 all right, 1 wrong elements, 2 bad arguments."""
    args = _arguments().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the ranks like any other exit
    try:
        if args.command == "run":
            return _run(args)
        if args.command == "install":
            install(args.peers, _log)
            return 0
        if not args.json.exists():
            raise ValueError(f"{args.json} is not there; make bench-peers writes one")
        data = Results(args.json).data
        cells = data["cells"]
        print(report(cells, args.markdown))
        print("\n" + sources(cells, data["runs"]))
        if args.plot:
            group = groups_of(cells)[0]
            plot(cells, list(group.names), group.floor, args.plot)
    except ValueError as error:
        _log(str(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
