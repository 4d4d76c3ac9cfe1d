# SPDX-License-Identifier: MIT
r"""What narrow wire formats bring between two hosts whose network is slow.

    python benchmarks/slow_network.py all_reduce --rate 1gbit --bytes 64M
    python benchmarks/slow_network.py step --rate 100mbit --delay-ms 10 --rounds 1 --steps 1
    python benchmarks/slow_network.py all_reduce --one-host \
        --contenders "fp32=pycomm auto=pycomm,PYCOMM_WIRE=auto"

One rank on each of two network namespaces (tests/hosts/network.py). Without a delay `tc` limits
their Ethernet; with one they are joined by slow_wire.py. The contenders run the same unchanged
script, each in processes of its own, in turns; formats are chosen by PYCOMM_WIRE. `all_reduce`
times calls on one float32 tensor of normal values and prints how far the sum is from the exact
one; `step` trains the GPT of training_step.py under DDP, or under pycomm.DataParallel where
PYCOMM_BENCH_WRAPPER=pycomm. A contender's HOOK=fp16 is torch's fp16_compress_hook. Exit code: 0; 3
a rank failed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[0] / "tests" / "hosts")]
from network import Network, enter_host, why_not  # noqa: E402
from slow_wire import CARD, SlowWire  # noqa: E402
from training_step_ranks import WARM_STEPS, Job, Trainer  # noqa: E402
from turns import Contender, Seat, contender_of, take_turns  # noqa: E402

from pycomm.bench.command import parse_size  # noqa: E402
from pycomm.bench.machine import describe  # noqa: E402
from pycomm.bench.ranks import Context, RankError  # noqa: E402

if TYPE_CHECKING:
    import torch.distributed as dist

WORLD = 2
EXIT_RANK = 3
FORMATS = "pycomm bf16=pycomm,PYCOMM_WIRE=bf16 fp16s=pycomm,PYCOMM_WIRE=fp16s"
OURS = "PYCOMM_BENCH_WRAPPER=pycomm"
CONTENDERS = {
    "all_reduce": f"gloo {FORMATS} int8=pycomm,PYCOMM_WIRE=int8 auto=pycomm,PYCOMM_WIRE=auto",
    "step": f"gloo gloo_hook=gloo,HOOK=fp16 {FORMATS} int8=pycomm,PYCOMM_WIRE=int8"
    f" dp_fp16s=pycomm,PYCOMM_WIRE=fp16s,{OURS} dp_int8=pycomm,PYCOMM_WIRE=int8,{OURS}",
}
# With this queue behind it a token bucket drops nothing that a window of TCP's can hold back.
BUCKET = "burst 128kb latency 20ms"
Row = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """Where a rank runs; picklable. Without a namespace: here, over `card`.

    Attributes:
        store: Address of the network's store; 127.0.0.1 without a network.
        port: Its port; 0: the run's own store.
    """

    namespace: str = ""
    host: str = ""
    store: str = "127.0.0.1"
    port: int = 0
    card: str = "lo"


class HostSeat(Seat):
    """A seat on one of two hosts; its groups meet in a store that both hosts reach."""

    def __init__(
        self, context: Context, contenders: Sequence[Contender], places: Sequence[Place]
    ) -> None:
        """Sits down among the contenders, then moves this process to its host."""
        super().__init__(context, contenders, WORLD)
        self._place_of_rank = places[self.rank]
        os.environ["GLOO_SOCKET_IFNAME"] = self._place_of_rank.card
        os.environ["PYCOMM_SOCKET_IFNAME"] = self._place_of_rank.card
        if self._place_of_rank.namespace:
            enter_host(self._place_of_rank.namespace, self._place_of_rank.host)

    def store(self) -> dist.Store:
        """A store for this contender's process group."""
        import torch.distributed as dist

        if not self._place_of_rank.port:
            return super().store()
        store = dist.TCPStore(self._place_of_rank.store, self._place_of_rank.port, is_master=False)
        return dist.PrefixStore(self.contender.name, store)


# ---- in the ranks


def all_reduce_main(
    context: Context,
    contenders: Sequence[Contender],
    world: int,
    places: Sequence[Place],
    asked: argparse.Namespace,
) -> None:
    """Times all_reduces of one tensor; in round 0 it joins and looks at the sum."""
    import torch
    import torch.distributed as dist

    seat = HostSeat(context, contenders, places)
    torch.set_num_threads(1)
    count = asked.bytes // 4
    inputs = torch.empty(0)
    x = torch.empty(count)
    for number in seat.turns(asked.rounds + 1):
        if number == 0:
            dist.init_process_group(
                seat.contender.backend, store=seat.store(), rank=seat.rank, world_size=world
            )
            exact = torch.zeros(count)
            for rank in range(world):
                mine = torch.randn(count, generator=torch.Generator().manual_seed(rank))
                exact += mine
                inputs = mine if rank == seat.rank else inputs
            x.copy_(inputs)
            dist.all_reduce(x)
            error = (x - exact).double().norm() / exact.double().norm()
            seat.emit({"relative_error": float(error)})
            continue
        times = []
        for _ in range(asked.steps):
            x.copy_(inputs)
            dist.barrier()
            began, cpu = time.perf_counter(), time.process_time()
            dist.all_reduce(x)
            times.append(1e3 * (time.perf_counter() - began))
        seat.emit({"round": number, "ms": times, "cpu_ms": 1e3 * (time.process_time() - cpu)})
    dist.destroy_process_group()


class SlowTrainer(Trainer):
    """A trainer that does not send its first weights over the slow network: one seed made them."""

    def _data_parallel(self, model: Any) -> Any:
        if os.environ.get("PYCOMM_BENCH_WRAPPER") == "pycomm":
            return super()._data_parallel(model)  # sends them, before anything is timed
        from torch.nn.parallel import DistributedDataParallel

        wrapped = DistributedDataParallel(model, init_sync=False)
        if os.environ.get("HOOK") == "fp16":
            from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

            wrapped.register_comm_hook(None, default_hooks.fp16_compress_hook)
        return wrapped


def step_main(
    context: Context,
    contenders: Sequence[Contender],
    world: int,
    places: Sequence[Place],
    asked: argparse.Namespace,
) -> None:
    """Times training steps; round 0 builds the model and warms up."""
    seat = HostSeat(context, contenders, places)
    trainer = None
    losses: list[float] = []
    for number in seat.turns(asked.rounds + 1):
        if trainer is None:
            trainer = SlowTrainer(Job(rounds=asked.rounds, steps=asked.steps), seat)
            losses += [trainer.step() for _ in range(min(WARM_STEPS, asked.warm))]
            continue
        times = []
        for _ in range(asked.steps):
            began = time.perf_counter()
            losses.append(trainer.step())
            times.append(1e3 * (time.perf_counter() - began))
        seat.emit({"round": number, "ms": times})
    seat.emit({"losses": losses})
    if trainer is not None and trainer.backend:
        import torch.distributed as dist

        dist.destroy_process_group()


# ---- in the parent


def bytes_per_s(rate: str) -> float:
    """What tc's "1gbit", "100mbit" mean."""
    for unit, bits in (("gbit", 1e9), ("mbit", 1e6), ("kbit", 1e3)):
        if rate.endswith(unit):
            return float(rate.removesuffix(unit)) * bits / 8
    raise SystemExit(f"--rate {rate}: expected a number with gbit, mbit or kbit")


def shaped(kept: ExitStack, rate: str, delay_ms: float) -> list[Place]:
    """Two hosts with that network between them, while `kept` is open."""
    network = Network()
    kept.callback(network.close)
    ends = network.hosts[0], network.hosts[1]
    card = "eth0"
    if delay_ms > 0:
        card = CARD
        wire = SlowWire(ends, bytes_per_s(rate), delay_ms / 1e3)
        kept.callback(wire.close)
    else:
        command = ["tc", *f"qdisc add dev eth0 root tbf rate {rate} {BUCKET}".split()]
        for host in ends:
            host.namespace.call(lambda: subprocess.run(command, check=True, timeout=30))
    return [
        Place(host.namespace.path, host.name, network.store_ip, network.store.port, card)
        for host in ends
    ]


def rows_of(told: Sequence[Row], contenders: Sequence[Contender]) -> list[Row]:
    """A row for each contender; a call lasts until its slower rank is done."""
    rows: list[Row] = []
    for contender in contenders:
        mine = [one for one in told if one["contender"] == contender.name]
        rounds = sorted({one["round"] for one in mine if "round" in one})
        times: list[float] = []
        for number in rounds:
            of_ranks = [one["ms"] for one in mine if one.get("round") == number]
            times += [max(pair) for pair in zip(*of_ranks, strict=True)]
        row: Row = {
            "contender": contender.name,
            "backend": contender.backend,
            "environment": dict(contender.environment),
            "ms_p50": statistics.median(times),
            "ms": [round(one, 3) for one in times],
        }
        for what in ("relative_error", "cpu_ms"):
            found = [one[what] for one in mine if what in one]
            if found:
                row[what] = statistics.median(found)
        losses = [one["losses"] for one in mine if "losses" in one]
        if losses:
            row["losses"] = [statistics.fmean(pair) for pair in zip(*losses, strict=True)]
        rows.append(row)
    for row in rows:
        row["faster"] = rows[0]["ms_p50"] / row["ms_p50"]
    return rows


def table(rows: Sequence[Row]) -> list[str]:
    """Lines for people."""
    lines = [f"{'':>10} {'ms':>9} {'min':>9} {'max':>9} {rows[0]['contender'] + ' / it':>10}"]
    for row in rows:
        line = f"{row['contender']:>10} {row['ms_p50']:>9.2f} {min(row['ms']):>9.2f}"
        line += f" {max(row['ms']):>9.2f} {row['faster']:>10.2f}"
        if "relative_error" in row:
            line += f"   error {row['relative_error']:.1e}, CPU {row['cpu_ms']:.1f} ms a rank"
        if "losses" in row:
            line += f"   last loss {row['losses'][-1]:.4f}"
        lines.append(line)
    return lines


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("what", choices=sorted(CONTENDERS))
    add("--rate", default="1gbit", help="of each host's link, in tc's words")
    add("--delay-ms", type=float, default=0.0, help="one way; 0: tc alone, no wire of our own")
    add("--one-host", action="store_true", help="no hosts: both ranks here, over shm or loopback")
    add("--contenders", help="NAME or NAME=BACKEND[,VARIABLE=VALUE]..., separated by spaces")
    add("--bytes", type=parse_size, default=parse_size("64M"), help="of the tensor")
    add("--rounds", type=int, default=5)
    add("--steps", type=int, default=3, help="timed calls or steps in a turn")
    add("--warm", type=int, default=WARM_STEPS, help="untimed steps before, at most 3")
    add("--note", default="", help="kept in the record")
    add("--json", type=Path, help="file for the rows and the machine")
    return parser.parse_args()


def main() -> int:
    """Measures and prints; returns the exit code."""
    given = arguments()
    contenders = [contender_of(one) for one in (given.contenders or CONTENDERS[given.what]).split()]
    why = "" if given.one_host else why_not()
    if why:
        raise SystemExit(f"a slow network needs network namespaces: {why}; see --one-host")
    entry = all_reduce_main if given.what == "all_reduce" else step_main
    try:
        with ExitStack() as kept:
            places = (
                [Place()] * WORLD if given.one_host else shaped(kept, given.rate, given.delay_ms)
            )
            told = take_turns(contenders, WORLD, entry, (places, given), pin=True)
    except RankError as error:
        print(f"slow_network: {error}", file=sys.stderr)
        return EXIT_RANK
    rows = rows_of(told, contenders)
    over = "one host" if given.one_host else f"{given.rate}, {given.delay_ms:g} ms one way"
    print(f"# {given.what}, {over}")
    print("\n".join(table(rows)))
    if given.json:
        asked = {name: value for name, value in vars(given).items() if name != "json"}
        stored = {"machine": describe(), "asked": asked, "rows": rows}
        given.json.write_text(json.dumps(stored, indent=1, default=str) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
