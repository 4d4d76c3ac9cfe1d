# SPDX-License-Identifier: MIT
"""How far a sum in each wire format is from the exact one, by the number of ranks; one process.

    python benchmarks/wire_error.py --json wire_error.json

Ranks are simulated: the codecs and the sum are the library's own, and run in the order of the
direct algorithm. Each rank's tensor is cut into one chunk for each rank; the owner of a chunk adds
what all send it, in rank order and its own contribution as it is, narrows the sum once, and decodes
that. Beside it torch's fp16_compress_hook as a ring adds it (gradients to float16, divided by the
number of ranks, partial sums in float16), and a ring that narrows float32 partial sums to bf16 at
every hop.

Errors are ||got - exact|| / ||exact||, exact in float64, of Gaussian gradients any two of which
have a correlation of 0.1, with a seed for each number of ranks. Not a timing. Exit code: 0; 1 if a
format's error grows with the number of ranks or exceeds its limit.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from pycomm.bench.machine import describe
from pycomm.native import load

# What a sum by the direct algorithm may lose, whatever the number of ranks: 1.15 times what one
# narrowing of each contribution and one of the sum cost in the worst case, two ranks.
LIMITS = {"fp32": 3.0e-7, "bf16": 2.4e-3, "fp16s": 3.0e-4, "int8": 1.0e-2, "int4": 1.55e-1}
WORLDS = (2, 3, 4, 8, 16, 32, 64, 256)
ELEMENTS = 32768
CORRELATION = 0.1
GROWTH_MAX = 1.25  # largest error over that of two ranks; in a ring it is 2 at 8 ranks
EXIT_ERROR = 1
Tensors = Sequence[torch.Tensor]


def gradients(world: int, elements: int = ELEMENTS) -> list[torch.Tensor]:
    """Returns one float32 vector for each rank, from a seed that is the number of ranks."""
    random = torch.Generator().manual_seed(world)
    shared = torch.randn(elements, generator=random)
    mine, ours = math.sqrt(1 - CORRELATION), math.sqrt(CORRELATION)
    return [ours * shared + mine * torch.randn(elements, generator=random) for _ in range(world)]


def direct(wire: str, tensors: Tensors) -> torch.Tensor:
    """Returns the sum of `tensors` as every rank holds it after an all_reduce in `wire`."""
    native = load()
    world, elements = len(tensors), tensors[0].numel()
    result = torch.empty(elements)
    for owner in range(world):
        chunk = slice(owner * elements // world, (owner + 1) * elements // world)
        sources = [
            tensor[chunk] if rank == owner else native.encode(wire, tensor[chunk])
            for rank, tensor in enumerate(tensors)
        ]
        native.reduce_encoded(wire, result[chunk], sources)
        encoded = native.encode(wire, result[chunk])
        native.decode(wire, encoded, result[chunk].numel(), result[chunk])
    return result


def fp16_hook(tensors: Tensors) -> torch.Tensor:
    """Returns what torch's fp16_compress_hook gives over a ring, times the number of ranks."""
    narrow = [tensor.to(torch.float16).div_(len(tensors)) for tensor in tensors]
    total = narrow[0].clone()
    for tensor in narrow[1:]:
        total += tensor
    return total.float() * len(tensors)


def bf16_ring(tensors: Tensors) -> torch.Tensor:
    """Returns the sum when every hop adds in float32 and narrows to bfloat16."""
    total = tensors[0].bfloat16()
    for tensor in tensors[1:]:
        total = (total.float() + tensor).bfloat16()
    return total.float()


def relative_error(got: torch.Tensor, tensors: Tensors) -> float:
    """Returns ||got - sum|| / ||sum||, computed in float64."""
    exact = torch.stack([tensor.double() for tensor in tensors]).sum(0)
    return float((got.double() - exact).norm() / exact.norm())


def measure(worlds: Sequence[int], elements: int = ELEMENTS) -> dict[str, dict[int, float]]:
    """Returns the relative error by scheme and number of ranks."""
    schemes: dict[str, Callable[[Tensors], torch.Tensor]] = {
        wire: partial(direct, wire) for wire in LIMITS
    }
    schemes |= {"torch's fp16 hook": fp16_hook, "bf16 ring": bf16_ring}
    errors: dict[str, dict[int, float]] = {name: {} for name in schemes}
    for world in worlds:
        tensors = gradients(world, elements)
        for name, scheme in schemes.items():
            errors[name][world] = relative_error(scheme(tensors), tensors)
    return errors


def faults(errors: dict[str, dict[int, float]]) -> list[str]:
    """Returns a sentence for each format that grows with the number of ranks or is too far off."""
    found = []
    for wire, limit in LIMITS.items():
        of = errors[wire]
        worst = max(of.values())
        if worst > limit:
            found.append(f"{wire}: error {worst:.2e}, limit {limit:.2e}")
        # float32 rounds at each of p - 1 additions.
        if wire != "fp32" and worst > GROWTH_MAX * of[min(of)]:
            found.append(f"{wire}: error grows from {of[min(of)]:.2e} to {worst:.2e}")
    return found


def main() -> int:
    """Prints the table and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--json", type=Path, help="write the errors and the machine to this file")
    options = parser.parse_args()
    errors = measure(WORLDS)
    print(f"{'ranks':<18}" + "".join(f"{world:>9}" for world in WORLDS))
    for name, of in errors.items():
        print(f"{name:<18}" + "".join(f"{error:>9.1e}" for error in of.values()))
    found = faults(errors)
    if options.json:
        record = {
            "machine": describe(),
            "elements": ELEMENTS,
            "correlation": CORRELATION,
            "limits": LIMITS,
            "errors": errors,
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    print("\n".join(found))
    return EXIT_ERROR if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
