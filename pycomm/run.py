# SPDX-License-Identifier: MIT
"""Runs a program that names another backend on pycomm.

    python -m pycomm run --replace gloo train.py --epochs 3
    torchrun --nproc-per-node 2 -m pycomm run --replace gloo train.py
    python -m pycomm run --replace gloo -m package.train

The program and all Python processes it starts get pycomm where they ask for the named backend, in
init_process_group, new_group, and where torch would choose it by itself. Rank 0 says on stderr what
was replaced.
"""

import argparse
import importlib.util
import os
import runpy
import sys
from pathlib import Path

from pycomm.errors import UsageError
from pycomm.native import load
from pycomm.replace import REPLACEABLE, install, parse_names

EXIT_USAGE = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments to the parser of a subcommand."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add(
        "--replace",
        required=True,
        metavar="NAMES",
        help=f"backends to replace, comma separated: {', '.join(REPLACEABLE)}",
    )
    add(
        "--keep-name",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="get_backend() answers the replaced name (default), or pycomm",
    )
    add("-m", dest="is_module", action="store_true", help="PROGRAM is a module, as in python -m")
    add("program", metavar="PROGRAM", help="a script, or with -m a module")
    add("arguments", nargs=argparse.REMAINDER, metavar="...", help="the program's own arguments")


def run(args: argparse.Namespace) -> int:
    """Runs the program in this process; returns 0, or 2 for wrong arguments.

    What the program raises, SystemExit among it, is raised here.
    """
    try:
        names = parse_names("--replace", args.replace)
        _check_program(args.program, args.is_module)
    except UsageError as error:
        print(f"pycomm run: {error}", file=sys.stderr)
        return EXIT_USAGE
    os.environ["PYCOMM_REPLACE"] = ",".join(names)
    os.environ["PYCOMM_KEEP_NAME"] = str(int(args.keep_name))
    if os.environ.get("RANK", "0") == "0":
        for text in _notes(names):
            print(f"pycomm run: {text}", file=sys.stderr, flush=True)
    install()
    sys.argv = [args.program, *args.arguments]
    if args.is_module:
        runpy.run_module(args.program, run_name="__main__", alter_sys=True)
    else:
        if not getattr(sys.flags, "safe_path", False):  # python -P puts no folder there
            sys.path[0] = str(Path(args.program).resolve().parent)
        runpy.run_path(args.program, run_name="__main__")
    return 0


def _check_program(program: str, is_module: bool) -> None:
    """Raises UsageError if there is no such script or module."""
    if is_module and importlib.util.find_spec(program.partition(".")[0]) is None:
        raise UsageError(f"{program!r}: no such module; install it, or name a script without -m")
    if not is_module and not Path(program).exists():
        raise UsageError(f"{program!r}: no such file; name a script, or write -m before a module")


def _notes(names: tuple[str, ...]) -> list[str]:
    """What the user should know before the program starts."""
    notes = []
    if {"nccl", "xccl"} & set(names) and not load().build_info()["cuda"]:
        notes.append(
            f"{','.join(names)} replaced: this pycomm was built without CUDA; a collective on a "
            "CUDA tensor raises UsageError"
        )
    if os.environ.get("TORCH_DEVICE_BACKEND_AUTOLOAD", "1") != "1":
        notes.append(
            "TORCH_DEVICE_BACKEND_AUTOLOAD is off, so processes that the program starts anew do "
            "not load pycomm and keep their backend"
        )
    return notes
