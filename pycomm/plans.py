# SPDX-License-Identifier: MIT
"""Show, prove and cost the algorithms: `python -m pycomm plan all_reduce ring 4`.

Two-level plans need to know who shares a host: `plan all_reduce hierarchical 4 --hosts 0,0,1,1`.
"""

import argparse
import sys
from collections.abc import Sequence

from pycomm.errors import UsageError
from pycomm.native import load

HIERARCHICAL = "hierarchical"


def algorithms(collective: str) -> list[str]:
    """Returns the names of the algorithms of a collective; local.

    Raises:
        UsageError: there is no such collective; the text lists them.
    """
    two_levels = [HIERARCHICAL] if load().has_hierarchical_plan(collective) else []
    return [*load().algorithms_for(collective), *two_levels]


def show(
    collective: str,
    algorithm: str,
    world_size: int,
    rank: int,
    root: int = 0,
    hosts: Sequence[int] = (),
) -> str:
    """Returns one rank's plan as a table; local.

    Args:
        collective: Its name, such as "all_reduce".
        algorithm: One of `algorithms(collective)`.
        world_size: Number of ranks.
        rank: Whose plan.
        root: Of rooted collectives.
        hosts: The number of each rank's host; only "hierarchical" asks for them.

    Raises:
        UsageError: no such collective or algorithm, or a number out of range.
    """
    return str(load().plan_text(collective, algorithm, world_size, rank, root, list(hosts)))


def prove(
    collective: str, algorithm: str, world_size: int, root: int = 0, hosts: Sequence[int] = ()
) -> str:
    """Proves all ranks' plans; local. Hosts as for `show`.

    Returns:
        "" when proved, otherwise what is wrong with which rank and step.

    Raises:
        UsageError: no such collective or algorithm, or a number out of range.
    """
    return str(load().plan_check(collective, algorithm, world_size, root, list(hosts)))


def cost(
    collective: str,
    algorithm: str,
    world_size: int,
    tensor_bytes: int,
    alpha_s: float = 1e-6,
    beta_s_per_byte: float = 1e-10,
    gamma_s_per_byte: float = 5e-11,
    hosts: Sequence[int] = (),
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
        hosts: As for `show`; all links are taken for equally fast.

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
            list(hosts),
        )
    )


def _hosts(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("collective", help="such as all_reduce")
    parser.add_argument("algorithm", nargs="?", help="such as ring; left out: list those there are")
    parser.add_argument("world_size", nargs="?", type=int, default=4, help="ranks (default 4)")
    parser.add_argument("--rank", type=int, help="only this rank's steps")
    parser.add_argument("--root", type=int, default=0, help="of rooted collectives (default 0)")
    parser.add_argument(
        "--hosts", type=_hosts, default=[], help="each rank's host, for hierarchical: 0,0,1,1"
    )
    parser.add_argument(
        "--bytes", type=int, default=1 << 20, help="tensor size to cost (default 1 MiB)"
    )


def run(given: argparse.Namespace) -> int:
    """Prints plans, the proof's outcome and the cost; returns the exit code."""
    try:
        if given.algorithm is None:
            print(f"{given.collective}: {', '.join(algorithms(given.collective))}")
            return 0
        plan = (given.collective, given.algorithm, given.world_size)
        ranks = range(given.world_size) if given.rank is None else [given.rank]
        for rank in ranks:
            print(show(*plan, rank, given.root, given.hosts))
        wrong = prove(*plan, given.root, given.hosts)
        price = cost(*plan, given.bytes, hosts=given.hosts)
    except UsageError as error:
        print(f"plan: {error}", file=sys.stderr)
        return 2
    print("proved" if not wrong else f"WRONG: {wrong}")
    print(
        f"{given.bytes} bytes: {price['steps']} dependent messages, busiest rank sends "
        f"{price['bytes_sent_max']} bytes and reduces {price['bytes_reduced_max']} bytes"
    )
    return 1 if wrong else 0
