# SPDX-License-Identifier: MIT
"""Speed between hosts: pycomm against iperf3 and Gloo, in turns, in one run.

    python benchmarks/between_hosts.py --json out.json                  # 2 hosts x 1 rank
    python benchmarks/between_hosts.py --ranks-per-host 2               # two levels
    python benchmarks/between_hosts.py --rate 1gbit --rates-only        # a slow link

Hosts are network namespaces joined by virtual Ethernet (tests/hosts/network.py), where this machine
allows them (root, iproute2); otherwise made-up hosts over loopback, and the output says so. Two
tables are printed:

    rates   GB/s (1e9 bytes) in each direction and CPU time of all processes per byte:
            iperf3 with as many connections as pycomm has, one way and both ways;
            a stream of messages (send, recv) one way; messages, then all_reduce, both ways at once
    times   of collectives by size, as `python -m pycomm bench` prints them

iperf3 neither reads what it sends nor looks at what it receives, and has no checksums.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "hosts"))
from network import Host, Network, enter_host, why_not  # noqa: E402

from pycomm.bench.command import parse_size, sizes_between  # noqa: E402
from pycomm.bench.machine import describe  # noqa: E402
from pycomm.bench.ranks import Context, run_ranks  # noqa: E402
from pycomm.bench.rows import with_ratios  # noqa: E402
from pycomm.bench.sweep import Sweep, join_all, measure_cells  # noqa: E402
from pycomm.bench.table import header, line, summary  # noqa: E402

IPERF_PORT = 5201
# With this queue behind it a token bucket drops nothing that a window of TCP's can hold back.
BUCKET = "burst 128kb latency 20ms"


@dataclass(frozen=True)
class Place:
    """Where a rank runs, and what it finds there; picklable.

    Attributes:
        namespace: Path of the host's network namespace; empty: a made-up host on loopback.
        peer: Address of the first host, where iperf3 listens.
    """

    namespace: str
    host: str
    store: str
    port: int
    interface: str
    peer: str

    def enter(self) -> None:
        """Moves this process to its host."""
        if self.namespace:
            enter_host(self.namespace, self.host)
        else:
            os.environ["PYCOMM_HOST_ID"] = self.host
        os.environ["GLOO_SOCKET_IFNAME"] = self.interface
        os.environ["PYCOMM_SOCKET_IFNAME"] = self.interface


@dataclass(frozen=True)
class Rates:
    """What the table of rates is asked for."""

    connections: int
    rounds: int
    seconds: float
    message_bytes: int


@dataclass
class Rate:
    """One line of the table of rates.

    Attributes:
        gbps: GB/s in each direction, by round.
        cpu_ns: CPU time of the processes at both ends, nanoseconds for each byte moved, by round.
    """

    what: str
    who: str
    gbps: list[float]
    cpu_ns: list[float]


# ---- in the ranks


def cpu_s() -> float:
    """CPU time of this process and its ended children."""
    return sum(os.times()[:4])


def iperf3(context: Context, place: Place, asked: Rates, both_ways: bool) -> tuple[float, float]:
    """Bytes, and bytes a second, in each direction between the first and the last rank's host."""
    server = None
    if context.rank == 0:
        listen = ["iperf3", "--server", "--one-off", "--port", str(IPERF_PORT)]
        server = subprocess.Popen(listen, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(0.3)
    dist.barrier()
    rate = moved = 0.0
    if context.rank == context.world - 1:
        command = [*("iperf3", "--client", place.peer, "--port", str(IPERF_PORT), "--json")]
        command += ["--time", f"{asked.seconds:.0f}", "--parallel", str(asked.connections)]
        told = json.loads(
            subprocess.run(
                command + ["--bidir"] * both_ways, capture_output=True, text=True, timeout=60
            ).stdout
        )
        ends = [told["end"]["sum_received"]]
        if both_ways:
            ends.append(told["end"]["sum_received_bidir_reverse"])
        rate = statistics.fmean(end["bits_per_second"] / 8 for end in ends)
        moved = statistics.fmean(end["bytes"] for end in ends)
    if server is not None:
        server.wait(timeout=60)
    return moved, rate


def repeat(call: Callable[[], None], seconds: float, group: Any) -> tuple[int, float]:
    """Calls for about that long; how often, and the seconds it took."""
    call()
    dist.barrier(group)
    began = time.perf_counter()
    call()
    one = torch.tensor(time.perf_counter() - began, dtype=torch.float64)
    dist.all_reduce(one, dist.ReduceOp.MAX)
    times = max(1, int(seconds / float(one)))
    dist.barrier(group)
    began = time.perf_counter()
    for _ in range(times):
        call()
    return times, time.perf_counter() - began


def streams(context: Context, asked: Rates, group: Any) -> dict[str, Callable[[], None]]:
    """What moves message_bytes in each direction that it uses, by name."""
    first, last = 0, context.world - 1
    x = torch.zeros(asked.message_bytes // 4)
    y = torch.zeros(asked.message_bytes // 4)

    def one_way() -> None:
        if context.rank == last:
            dist.send(x, first, group)
        elif context.rank == first:
            dist.recv(y, last, group)

    def both_ways() -> None:
        if context.rank not in (first, last):
            return
        other = first if context.rank == last else last
        works = [dist.isend(x, other, group), dist.irecv(y, other, group)]
        for work in works:
            work.wait()  # type: ignore[union-attr]

    return {
        "messages, one way": one_way,
        "messages, both ways": both_ways,
        "all_reduce": lambda: dist.all_reduce(x, group=group) and None,
    }


def measure_rates(
    context: Context, place: Place, asked: Rates, groups: dict[str, Any]
) -> Iterator[Rate]:
    """One round after the other, everything in turns; the rows on every rank, in the end."""
    turns: list[tuple[str, str, Callable[[], tuple[float, float]]]] = []
    if shutil.which("iperf3"):
        for both, what in ((False, "iperf3, one way"), (True, "iperf3, both ways")):
            turns.append((what, "iperf3", lambda b=both: iperf3(context, place, asked, b)))
    for backend, group in groups.items():

        def rate_of(call: Callable[[], None], group: Any = group) -> tuple[float, float]:
            times, took = repeat(call, asked.seconds, group)
            # Two calls come before the clock is started.
            return (times + 2) * asked.message_bytes, times * asked.message_bytes / took

        for what, call in streams(context, asked, group).items():
            turns.append((what, backend, lambda call=call, of=rate_of: of(call)))
    rows = [Rate(what, who, [], []) for what, who, _ in turns]
    for number in range(asked.rounds):
        for at in range(len(turns)) if number % 2 == 0 else reversed(range(len(turns))):
            what, who, turn = turns[at]
            context.step(f"{what}, {who}, round {number}")
            dist.barrier()
            cpu = cpu_s()
            moved, rate = turn()
            # The slowest rank says how long it took; iperf3 is heard from one rank only.
            slowest = torch.tensor(rate or float("inf"), dtype=torch.float64)
            dist.all_reduce(slowest, dist.ReduceOp.MIN)
            most = torch.tensor(moved, dtype=torch.float64)
            dist.all_reduce(most, dist.ReduceOp.MAX)
            used = torch.tensor(cpu_s() - cpu, dtype=torch.float64)
            dist.all_reduce(used)
            directions = 1 if "one way" in what else 2
            rows[at].gbps.append(float(slowest) / 1e9)
            rows[at].cpu_ns.append(1e9 * float(used) / (float(most) * directions))
    yield from rows


def rank_main(
    context: Context, places: list[Place], rates: Rates | None, sweep: Sweep | None
) -> None:
    """A rank: enters its host, joins the groups, measures; rank 0 emits."""
    place = places[context.rank]
    place.enter()
    torch.set_num_threads(1)
    store = TCPStore(place.store, place.port, is_master=False)
    asked = sweep or Sweep((), ("pycomm", "gloo"), (), ())
    groups = join_all(context, asked, store)
    if rates is not None:
        for row in measure_rates(context, place, rates, groups):
            if context.rank == 0:
                context.emit(row)
    if sweep is not None:
        measure_cells(context, sweep, groups)
    dist.barrier()
    dist.destroy_process_group()


# ---- in the parent


def slow_down(host: Host, rate: str) -> None:
    """Limits what leaves the host."""
    command = ["tc", *f"qdisc add dev eth0 root tbf rate {rate} {BUCKET}".split()]
    host.namespace.call(lambda: subprocess.run(command, check=True, timeout=30))


def places_on(network: Network | None, port: int, ranks_per_host: int) -> list[Place]:
    """Two hosts, so many ranks on each."""
    if network is None:
        names = [f"pretended-{host}" for host in "ab" for _ in range(ranks_per_host)]
        return [Place("", name, "127.0.0.1", port, "lo", "127.0.0.1") for name in names]
    hosts = [host for host in network.hosts[:2] for _ in range(ranks_per_host)]
    return [
        Place(
            host.namespace.path,
            host.name,
            network.store_ip,
            network.store.port,
            "eth0",
            network.hosts[0].address(),
        )
        for host in hosts
    ]


def show_rate(row: Rate, rows: list[Rate]) -> str:
    """A line of the table of rates, with the share of what iperf3 reaches in the same direction."""
    way = "one way" if "one way" in row.what else "both ways"
    peers = [one for one in rows if one.what == f"iperf3, {way}"]
    share = "" if not peers else f"{statistics.median(ratios(row, peers[0])):>10.2f}"
    gbps, cpu = statistics.median(row.gbps), statistics.median(row.cpu_ns)
    return f"{row.what:<22}{row.who:<8}{gbps:>8.3f}{cpu:>10.3f}{share}"


def ratios(row: Rate, other: Rate) -> list[float]:
    """By round."""
    return [mine / theirs for mine, theirs in zip(row.gbps, other.gbps, strict=True)]


def run(given: argparse.Namespace, network: Network | None) -> dict[str, Any]:
    """Measures on hosts that are there; prints, and returns what is to be kept."""
    store = None
    if network is None:
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    places = places_on(network, store.port if store else 0, given.ranks_per_host)
    rates = sweep = None
    if not given.times_only:
        rates = Rates(
            given.connections, given.rounds, given.rate_seconds, parse_size(given.message)
        )
    if not given.rates_only:
        sizes = sizes_between(parse_size(given.min), parse_size(given.max), given.factor)
        sweep = Sweep(
            tuple(given.collectives.split(",")),
            tuple(given.backend.split(",")),
            (len(places),),
            sizes,
            placements=("out",),
            seconds=given.seconds,
        )
    os.environ["PYCOMM_TCP_CONNECTIONS"] = str(given.connections)
    rate_rows: list[Rate] = []
    rows: list[Any] = []
    arguments = (places, rates, sweep)
    pin = not given.no_pin
    for emitted in run_ranks(len(places), rank_main, arguments, timeout_s=120, pin=pin):
        if isinstance(emitted, Rate):
            rate_rows.append(emitted)
            continue
        if not rows:
            print(header(True))
        rows += with_ratios(emitted, "gloo")
        print("\n".join(line(row, True) for row in rows[-len(emitted) :]), flush=True)
    if rate_rows:
        print(f"{'':<30}{'GB/s':>8}{'CPU ns/B':>10}{'of iperf3':>10}")
        print("\n".join(show_rate(row, rate_rows) for row in rate_rows))
    if sweep is not None:
        print("\n".join(summary(rows, sweep.backends)))
    return {"rates": [asdict(row) for row in rate_rows], "rows": [asdict(row) for row in rows]}


def arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--ranks-per-host", type=int, default=1)
    add("--connections", type=int, default=2, help="of pycomm for each pair, and of iperf3")
    add("--rate", help="limit each host's link, for instance 1gbit (tc tbf)")
    add("--collectives", default="all_reduce,broadcast,all_gather,reduce_scatter")
    add("--backend", default="pycomm,gloo")
    add("--min", default="8")
    add("--max", default="256M")
    add("--factor", type=int, default=8)
    add("--seconds", type=float, default=0.2, help="time for a cell and backend")
    add("--rounds", type=int, default=3, help="of the rates")
    add("--rate-seconds", type=float, default=1, help="time for a rate in a round")
    add("--message", default="16M", help="bytes of a message where rates are measured")
    add("--rates-only", action="store_true")
    add("--times-only", action="store_true")
    add("--no-pin", action="store_true", help="let the kernel place the ranks")
    add("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    """Makes the hosts, measures, and leaves nothing behind."""
    given = arguments()
    why = why_not()
    if why:
        print(f"# hosts are made up, over loopback: {why}")
    elif given.rate and not shutil.which("tc"):
        why = "there is no `tc` (package iproute2)"
    if given.rate and why:
        raise SystemExit(f"--rate needs network namespaces and tc: {why}")
    if not given.times_only and not shutil.which("iperf3"):
        print("# iperf3 is absent: install the package iperf3 for its rows")
    network = None if why else Network()
    try:
        if network is not None and given.rate:
            for host in network.hosts[:2]:
                slow_down(host, given.rate)
        machine = describe()
        over = "loopback" if network is None else "network namespaces"
        print(f"# {machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}, {over}")
        kept = {"machine": machine, "over": over, "asked": vars(given), **run(given, network)}
    finally:
        if network is not None:
            network.close()
    if given.json:
        given.json.write_text(json.dumps(kept, indent=1, default=str) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
