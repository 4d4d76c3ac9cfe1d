# SPDX-License-Identifier: MIT
"""Train on one backend, then race it against another: `make demo` on any machine with two cores.

    python examples/demo.py                        # pycomm, compared with gloo
    python examples/demo.py --backend gloo --reference gloo --steps 100

First a full training run of ddp_unchanged.py. Then both backends run the first steps of the same
schedule, with the same seed, in short stretches that take turns (stop, checkpoint, resume; ABBA),
so that a slow minute of the machine strikes both. Last, compare_runs.py checks that the losses are
equal to rounding and prints the times. Exit status 0: all ran and the losses agree.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROUNDS = 2  # stretches of each backend in the comparison
STRETCH_STEPS = 15  # steps in one stretch


def heading(text: str) -> None:
    """Print `text` so that it stands out in the stream of the runs."""
    print(f"\n=== {text} ===", flush=True)


def call(command: list[str], allowed: tuple[int, ...] = (0,)) -> int:
    """Run a command with one compute thread a process, its output to ours; end if it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    code = subprocess.run(command, env=environment).returncode
    if code not in allowed:
        print(f"failed with status {code}: {' '.join(command)}", file=sys.stderr)
        raise SystemExit(code if code > 0 else 1)
    return code


def train(args: argparse.Namespace, backend: str, out: Path, *options: str) -> None:
    """Run ddp_unchanged.py under torchrun on this machine, on a free port."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "localhost"]
    script = [str(HERE / "ddp_unchanged.py"), "--backend", backend, "--out", str(out)]
    schedule = ["--steps", str(args.steps), "--batch-size", str(32 * args.nproc), *options]
    call([sys.executable, *launcher, "--nproc-per-node", str(args.nproc), *script, *schedule])


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Train a small GPT on one backend and compare it with another.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--backend", default="pycomm", help="backend of the full run")
    parser.add_argument("--reference", default="gloo", help="backend to compare with")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of the full run")
    parser.add_argument("--nproc", type=int, default=2, help="processes, one core each")
    parser.add_argument("--out", type=Path, default=Path("demo_out"), help="folder for results")
    return parser.parse_args()


def main() -> int:
    """Run the demo; return 0 where both backends' losses agree."""
    args = parse_args()
    begin = time.monotonic()
    full = args.out / args.backend
    heading(f"1. Train on {args.backend}: {args.nproc} processes, {args.steps} steps")
    train(args, args.backend, full)

    shorts = {"reference": args.reference, "backend": args.backend}
    for turn in range(1, ROUNDS + 1):
        stop = min(turn * STRETCH_STEPS, args.steps)
        order = list(shorts.items()) if turn % 2 else list(shorts.items())[::-1]
        for role, backend in order:
            heading(f"2. Same schedule to step {stop} on {backend}, turn {turn} of {ROUNDS}")
            resume = ["--resume"] if turn > 1 else []
            out = args.out / f"short_{role}"
            train(args, backend, out, "--stop-after", str(stop), "--log-every", "15", *resume)

    heading(f"3. {args.reference} and {args.backend} over the same steps")
    outs = [str(args.out / f"short_{role}") for role in shorts]
    different = call([sys.executable, str(HERE / "compare_runs.py"), *outs], allowed=(0, 1))
    print(f"\nThe full run's curve, checkpoint and sampled text are in {full}.")
    print(f"The demo took {time.monotonic() - begin:.0f} s.")
    return different


if __name__ == "__main__":
    sys.exit(main())
