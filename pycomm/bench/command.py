# SPDX-License-Identifier: MIT
"""The command line of the bench: arguments in, a `Sweep` out."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from pycomm.bench.cells import BOTH_PLACEMENTS, DTYPES, OPS, SPECS
from pycomm.bench.sweep import Sweep

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
EXIT_CODES = "exit code: 0 all right, 1 wrong elements, 2 bad arguments, 3 a rank failed or hung"


class UsageError(ValueError):
    """The command line asks for something that cannot be measured."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the bench's arguments to a parser, for instance that of a subcommand."""
    parser.epilog = EXIT_CODES
    add = parser.add_argument
    add("collective", metavar="COLLECTIVE", help=f"comma list of {', '.join(SPECS)}, or all")
    add("--backend", default="pycomm,gloo", help="comma list; ratios are against the last one")
    add("--world", default="2", help="comma list of numbers of ranks (default: 2)")
    add("--min", default="8", help="smallest size in bytes, suffix K, M, G = 2^10, 2^20, 2^30")
    add("--max", default="256M", help="largest size")
    add("--factor", type=int, default=4, help="step between sizes, 2 or more (default: 4)")
    add("--dtype", default="float32", help=f"comma list of {', '.join(DTYPES)}, or all")
    add("--op", default="sum", help=f"comma list of {', '.join(OPS)}, or all")
    add("--root", type=int, default=0, help="root rank of broadcast, reduce, gather, scatter")
    place = parser.add_mutually_exclusive_group()
    for name, value in (
        ("in-place", ("in",)),
        ("out-of-place", ("out",)),
        ("both", BOTH_PLACEMENTS),
    ):
        text = f"measure {name.replace('-', ' ')}" + (" (default)" if name == "both" else "")
        place.add_argument(
            f"--{name}",
            dest="placements",
            action="store_const",
            const=value,
            default=BOTH_PLACEMENTS,
            help=text,
        )
    add("--async", dest="async_op", action="store_true", help="call with async_op=True, then wait")
    add("--seconds", type=float, default=0.3, help="time for a cell and backend (default: 0.3)")
    add("--iterations", type=int, help="exact number of samples, instead of --seconds")
    add("--check-only", action="store_true", help="count wrong elements, do not time")
    add("--pin", action="store_true", help="bind rank i to core i")
    add("--timeout", type=float, default=120.0, help="seconds before a cell counts as hung")
    add("--json", type=Path, metavar="FILE", help="write machine, command and rows")
    add("--plot", type=Path, metavar="FILE.png", help="draw time and bus bandwidth")


def sweep_of(args: argparse.Namespace) -> Sweep:
    """Builds the sweep that the arguments describe.

    Raises:
        UsageError: an argument is out of range or names something unknown.
    """
    smallest, largest = parse_size(args.min, "--min"), parse_size(args.max, "--max")
    worlds = tuple(_whole(text, "--world", 1) for text in _words(args.world, "--world"))
    if args.root < 0 or args.root >= min(worlds):
        raise UsageError(
            f"--root: got {args.root}, expected a rank below {min(worlds)}; "
            "choose a rank that every --world has"
        )
    if args.iterations is not None and args.iterations < 1:
        raise UsageError(f"--iterations: got {args.iterations}, expected 1 or more; raise it")
    for option, value in (("--seconds", args.seconds), ("--timeout", args.timeout)):
        if not value > 0:
            raise UsageError(f"{option}: got {value:g}, expected more than 0 seconds; raise it")
    return Sweep(
        collectives=_names(args.collective, "COLLECTIVE", tuple(SPECS)),
        backends=_labels(_words(args.backend, "--backend")),
        worlds=worlds,
        sizes=sizes_between(smallest, largest, args.factor),
        dtypes=_names(args.dtype, "--dtype", tuple(DTYPES)),
        ops=_names(args.op, "--op", OPS),
        placements=args.placements,
        root=args.root,
        async_op=args.async_op,
        seconds=args.seconds,
        iterations=args.iterations,
        check_only=args.check_only,
        pin=args.pin,
        timeout_s=args.timeout,
    )


def parse_size(text: str, option: str = "size") -> int:
    """Returns the bytes that ``8``, ``64K``, ``16MiB`` or ``1G`` means; units are binary.

    Raises:
        UsageError: the text is not a size of at least 1 byte.
    """
    match = re.fullmatch(r"(\d+)\s*([KMG]?)(I?B)?", text.strip().upper())
    size = int(match[1]) * UNITS[match[2]] if match else 0
    if size < 1:
        raise UsageError(
            f"{option}: got {text!r}, expected a number of bytes; write it like 8, 64K, 16M or 1G"
        )
    return size


def sizes_between(smallest: int, largest: int, factor: int) -> tuple[int, ...]:
    """Returns smallest, smallest * factor, ... and always largest.

    Raises:
        UsageError: the range is empty or the factor below 2.
    """
    if factor < 2:
        raise UsageError(f"--factor: got {factor}, expected 2 or more; try 2 or 4")
    if smallest > largest:
        raise UsageError(
            f"--min: got {smallest} bytes, expected at most --max ({largest} bytes); swap them"
        )
    sizes = [smallest]
    while sizes[-1] * factor <= largest:
        sizes.append(sizes[-1] * factor)
    return tuple(dict.fromkeys([*sizes, largest]))


def check_backends(backends: Sequence[str]) -> None:
    """Verifies that torch knows every backend; imports torch.

    Raises:
        UsageError: a backend is unknown or not built into this torch.
    """
    import torch.distributed as dist

    known = [
        name
        for name in dist.Backend.backend_list
        if name not in ("undefined", "fake") and dist.is_backend_available(name)
    ]
    for backend in backends:
        if backend.partition(".")[0] not in known:
            raise UsageError(
                f"--backend: got {backend!r}, expected one of {', '.join(known)}; "
                "check the spelling, or install the package that registers it"
            )


def _labels(backends: Sequence[str]) -> tuple[str, ...]:
    """Numbers repeated backends (gloo, gloo.2): measuring one against itself shows the noise."""
    seen: dict[str, int] = {}
    labels = []
    for backend in backends:
        seen[backend] = seen.get(backend, 0) + 1
        labels.append(backend if seen[backend] == 1 else f"{backend}.{seen[backend]}")
    return tuple(labels)


def _words(text: str, option: str) -> list[str]:
    """Splits a comma list."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise UsageError(f"{option}: got nothing, expected a comma list; name at least one")
    return words


def _names(text: str, option: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """Splits a comma list of known names; ``all`` is all of them."""
    words = _words(text, option)
    if words == ["all"]:
        return known
    for word in words:
        if word not in known:
            raise UsageError(
                f"{option}: got {word!r}, expected one of {', '.join(known)}; check the spelling"
            )
    return tuple(dict.fromkeys(words))


def _whole(text: str, option: str, least: int) -> int:
    """Parses a whole number of at least ``least``."""
    if not text.isdigit() or int(text) < least:
        raise UsageError(
            f"{option}: got {text!r}, expected a whole number from {least}; correct it"
        )
    return int(text)
