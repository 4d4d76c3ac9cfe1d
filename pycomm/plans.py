# SPDX-License-Identifier: MIT
"""Show, prove and cost the algorithms: `python -m pycomm plan all_reduce ring 4`."""

import argparse
import sys

from pycomm.errors import UsageError
from pycomm.native import load


def algorithms(collective: str) -> list[str]:
    """Returns the names of the algorithms of a collective; local.

    Raises:
        UsageError: there is no such collective; the text lists them.
    """
    return list(load().algorithms_for(collective))


def show(collective: str, algorithm: str, world_size: int, rank: int, root: int = 0) -> str:
    """Returns one rank's plan as a table; local.

    Raises:
        UsageError: no such collective or algorithm, or a number out of range.
    """
    return str(load().plan_text(collective, algorithm, world_size, rank, root))


def prove(collective: str, algorithm: str, world_size: int, root: int = 0) -> str:
    """Proves all ranks' plans; local.

    Returns:
        "" when proved, otherwise what is wrong with which rank and step.

    Raises:
        UsageError: no such collective or algorithm, or a number out of range.
    """
    return str(load().plan_check(collective, algorithm, world_size, root))


def cost(
    collective: str,
    algorithm: str,
    world_size: int,
    tensor_bytes: int,
    alpha_s: float = 1e-6,
    beta_s_per_byte: float = 1e-10,
    gamma_s_per_byte: float = 5e-11,
) -> dict[str, float]:
    """Returns steps, bytes of the busiest rank, and predicted seconds; local.

    Args:
        collective: Its name, such as "all_reduce".
        algorithm: One of `algorithms(collective)`.
        world_size: Number of ranks.
        tensor_bytes: Bytes of the tensor (all_reduce, broadcast, reduce) or of one rank's block.
        alpha_s: Seconds for one message.
        beta_s_per_byte: Seconds to move one byte.
        gamma_s_per_byte: Seconds to reduce one byte.

    Source: Thakur, Rabenseifner, Gropp, Optimization of Collective Communication Operations in
    MPICH, 2005.
    """
    return dict(
        load().plan_cost(
            collective,
            algorithm,
            world_size,
            tensor_bytes,
            alpha_s,
            beta_s_per_byte,
            gamma_s_per_byte,
        )
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("collective", help="such as all_reduce")
    parser.add_argument("algorithm", nargs="?", help="such as ring; left out: list those there are")
    parser.add_argument("world_size", nargs="?", type=int, default=4, help="ranks (default 4)")
    parser.add_argument("--rank", type=int, help="only this rank's steps")
    parser.add_argument("--root", type=int, default=0, help="of rooted collectives (default 0)")
    parser.add_argument(
        "--bytes", type=int, default=1 << 20, help="tensor size to cost (default 1 MiB)"
    )


def run(given: argparse.Namespace) -> int:
    """Prints plans, the proof's outcome and the cost; returns the exit code."""
    try:
        if given.algorithm is None:
            print(f"{given.collective}: {', '.join(algorithms(given.collective))}")
            return 0
        ranks = range(given.world_size) if given.rank is None else [given.rank]
        for rank in ranks:
            print(show(given.collective, given.algorithm, given.world_size, rank, given.root))
        wrong = prove(given.collective, given.algorithm, given.world_size, given.root)
        price = cost(given.collective, given.algorithm, given.world_size, given.bytes)
    except UsageError as error:
        print(f"plan: {error}", file=sys.stderr)
        return 2
    print("proved" if not wrong else f"WRONG: {wrong}")
    print(
        f"{given.bytes} bytes: {price['steps']} dependent messages, busiest rank sends "
        f"{price['bytes_sent_max']} bytes and reduces {price['bytes_reduced_max']} bytes"
    )
    return 1 if wrong else 0
