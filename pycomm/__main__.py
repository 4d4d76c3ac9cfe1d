# SPDX-License-Identifier: MIT
"""The command line: python -m pycomm run | doctor | bench | plan | flight | data."""

import argparse
import sys

from pycomm import bench, doctor, flight, plans
from pycomm import run as run_program
from pycomm.data import command as data


def main(arguments: list[str] | None = None) -> int:
    """Runs one subcommand; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pycomm", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, module, text in (
        ("run", run_program, "run a program that names another backend on pycomm, unedited"),
        ("doctor", doctor, "say what is found here, measure between ranks, name what is wrong"),
        ("bench", bench, "measure collectives side by side with other backends, and check them"),
        ("plan", plans, "print an algorithm as the steps each rank takes, prove it, cost it"),
        ("data", data, "write text files as tokens to train on, show what such a file has"),
        ("flight", flight, "compare flight recorder dumps and say where the ranks part"),
    ):
        command = commands.add_parser(name, help=text, description=module.__doc__)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    given = parser.parse_args(arguments)
    return int(given.run(given))


if __name__ == "__main__":
    sys.exit(main())
