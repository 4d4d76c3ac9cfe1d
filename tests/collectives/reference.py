# SPDX-License-Identifier: MIT
"""Inputs of every dtype, what a reduction of them should give, and how far off it may be.

Notation: p ranks, x_i the rank's inputs, u the unit roundoff of the dtype (half its eps), w that of
the type it is added in (float32 for 8- and 16-bit floats, else the dtype), k the number of times a
value is stored in the dtype on its way:

    k = 1      algorithms that fold all p inputs in one pass (FOLDS)
    k = p - 1  all others: one addition, one rounding for each hop, at most p - 1 of them in a row
    + 1        for avg and for premul_sum: one more rounding

The reference is computed in 80-bit floats, so its own error does not count.

    sum, avg, premul_sum   |error| <= ((1 + u)^k (1 + w)^p - 1) * sum |x_i|  (avg: / p)   + k * t
    product                |error| <= ((1 + c u)^k (1 + c w)^p - 1) * prod |x_i|          + k * t
    integers, booleans, min, max: no error at all

t is the smallest subnormal number. c = 1; 2.3 > sqrt(5) for complex products (Brent, Percival,
Zimmermann, Error bounds on complex floating-point multiplication, 2007).
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

UNSIGNED = [torch.uint8, torch.uint16, torch.uint32, torch.uint64]
SIGNED = [torch.int8, torch.int16, torch.int32, torch.int64]
INTEGERS = UNSIGNED + SIGNED
SMALL_FLOATS = [
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
]
FLOATS = [torch.float32, torch.float64, *SMALL_FLOATS]
COMPLEX = [torch.complex32, torch.complex64, torch.complex128]
DTYPES = [torch.bool, *INTEGERS, *FLOATS, *COMPLEX]

FACTOR = 0.375  # of premul_sum; exact in every dtype but float8_e8m0fnu
OPS = ["sum", "avg", "product", "min", "max", "band", "bor", "bxor", "premul_sum"]
# Algorithms that add all ranks' inputs in one pass, in the order of the ranks.
FOLDS = {
    "all_reduce": {"one_shot", "direct"},
    "reduce": {"direct"},
    "reduce_scatter": {"direct"},
}


def ops_for(dtype: torch.dtype) -> list[str]:
    """The ops that have a meaning on the dtype."""
    if dtype == torch.bool:
        return ["sum", "product", "min", "max", "band", "bor", "bxor"]
    if dtype in INTEGERS:
        return OPS[:-1]
    if dtype in COMPLEX:
        return ["sum", "avg", "product", "premul_sum"]
    return ["sum", "avg", "product", "min", "max", "premul_sum"]


def torch_op(op: str) -> object:
    """torch's name for it."""
    if op == "premul_sum":
        return dist._make_nccl_premul_sum(factor_for(torch.float32))
    return getattr(dist.ReduceOp, op.upper())


def factor_for(dtype: torch.dtype) -> float:
    return 0.5 if dtype == torch.float8_e8m0fnu else FACTOR


def seed_of(*parts: object) -> int:
    """The same number for the same parts in every process."""
    return zlib.crc32(repr(parts).encode())


def parts_of(dtype: torch.dtype) -> torch.dtype:
    """The dtype of a complex number's parts; itself for others."""
    parts = {
        torch.complex32: torch.float16,
        torch.complex64: torch.float32,
        torch.complex128: torch.float64,
    }
    return parts.get(dtype, dtype)


def make(dtype: torch.dtype, count: int, seed: int, op: str = "sum") -> torch.Tensor:
    """A random tensor[count]: integers over their whole range, floats so that nothing overflows."""
    random = np.random.default_rng(seed)
    if dtype == torch.bool:
        return torch.from_numpy(random.integers(0, 2, count).astype(bool))
    if dtype in INTEGERS:
        bits = random.bytes(count * dtype.itemsize)
        return torch.frombuffer(bytearray(bits or b"\0" * 8), dtype=dtype)[:count].clone()
    if dtype == torch.float8_e8m0fnu:
        return torch.from_numpy(2.0 ** random.integers(-3, 4, count)).float().to(dtype)
    if dtype in COMPLEX:
        pair = make(parts_of(dtype), 2 * count, seed, op)
        return torch.view_as_complex(pair.reshape(count, 2))
    sign = random.choice([-1.0, 1.0], count)
    if op == "product":
        values = random.uniform(0.75, 1.25, count)
    else:
        values = random.uniform(0.5, 1.0, count) * 2.0 ** random.integers(-4, 3, count)
    first = torch.float32 if dtype.itemsize == 1 else dtype
    return torch.from_numpy(sign * values).to(first).to(dtype)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's bytes: for comparisons that tell -0 from 0 and one NaN from another."""
    flat = tensor.contiguous()
    # Tensors of 0 or 1 elements may have stride 0, which view() refuses.
    return flat.as_strided((flat.numel(),), (1,)).view(torch.uint8)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))


def wide(tensor: torch.Tensor) -> np.ndarray:
    """The values as 80-bit floats (complex: pairs of them), exactly."""
    if tensor.dtype in COMPLEX:
        pair = torch.view_as_real(tensor).double().numpy().astype(np.longdouble)
        return pair[..., 0] + 1j * pair[..., 1]
    exact = tensor.float() if tensor.dtype.itemsize == 1 else tensor
    return exact.double().numpy().astype(np.longdouble)


@dataclass
class Expected:
    """What a reduction gives: exactly, or within a bound in the 80-bit reference."""

    dtype: torch.dtype
    op: str
    exact: torch.Tensor | None = None  # integers, booleans, min, max
    folded: torch.Tensor | None = None  # floats: the bits of a fold in the order of the ranks
    value: np.ndarray | None = None
    magnitude: np.ndarray | None = None
    world_size: int = 1

    def bound(self, folds: bool) -> np.ndarray:
        """The largest allowed error of each element, as the module's docstring states it."""
        part = parts_of(self.dtype)
        # torch.finfo says 0.125 for float8_e5m2fnuz, whose two mantissa bits make it 0.25.
        eps = 0.25 if part == torch.float8_e5m2fnuz else torch.finfo(part).eps
        unit = eps / 2
        adds_in = torch.finfo(torch.float32).eps / 2 if part.itemsize < 4 else unit
        hops = 1 if folds else max(1, self.world_size - 1)
        hops += self.op in ("avg", "premul_sum")
        c = 2.3 if self.op == "product" and self.dtype in COMPLEX else 1.0
        growth = hops * math.log1p(c * unit) + self.world_size * math.log1p(c * adds_in)
        tiny = torch.finfo(part).tiny * (1.0 if part == torch.float8_e8m0fnu else 2 * unit)
        assert self.magnitude is not None
        return math.expm1(growth) * self.magnitude + hops * tiny

    def check(self, got: torch.Tensor, folds: bool, what: str) -> None:
        """Fails unless `got` is right."""
        if self.exact is not None:
            assert same_bits(got, self.exact), f"{what}: got {got}, expected {self.exact}"
            return
        if folds:
            assert self.folded is not None
            assert same_bits(got, self.folded), f"{what}: got {got}, expected {self.folded}"
        error = np.abs(wide(got) - self.value)
        bound = self.bound(folds)
        if not (error <= bound).all():
            worst = int(np.argmax(error - bound))
            raise AssertionError(
                f"{what}: element {worst} is {wide(got)[worst]}, expected {self.value[worst]}, "
                f"error {error[worst]}, bound {bound[worst]}"
            )


def expect(inputs: list[torch.Tensor], op: str) -> Expected:
    """What the reduction of the ranks' inputs, in the order of the ranks, should give."""
    dtype = inputs[0].dtype
    p = len(inputs)
    if dtype == torch.bool:
        stack = torch.stack(inputs)
        if op == "bxor":
            return Expected(dtype, op, exact=stack.int().sum(0) % 2 == 1)
        either = op in ("sum", "max", "bor")
        return Expected(dtype, op, exact=stack.any(0) if either else stack.all(0))
    if dtype in INTEGERS:
        return Expected(dtype, op, exact=_reduce_integers(inputs, op))
    if op in ("min", "max"):
        values = np.stack([wide(x) for x in inputs])
        chosen = np.argmin(values, 0) if op == "min" else np.argmax(values, 0)
        raw = torch.stack([x.view(_raw(dtype)) for x in inputs])
        picked = raw.gather(0, torch.from_numpy(chosen)[None])[0]
        return Expected(dtype, op, exact=picked.view(dtype))
    if op == "premul_sum":
        inputs = [_narrow(_widen(x) * factor_for(dtype), dtype) for x in inputs]
    stack = np.stack([wide(x) for x in inputs])
    result = Expected(dtype, op, world_size=p, folded=_fold(inputs, op))
    if op == "product":
        result.value, result.magnitude = np.prod(stack, 0), np.prod(np.abs(stack), 0)
    else:
        scale = p if op == "avg" else 1
        size = np.maximum(np.abs(stack.real), np.abs(stack.imag)) * 2
        if dtype not in COMPLEX:
            size = np.abs(stack)
        result.value, result.magnitude = stack.sum(0) / scale, size.sum(0) / scale
    return result


def _raw(dtype: torch.dtype) -> torch.dtype:
    return {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]


def _reduce_integers(inputs: list[torch.Tensor], op: str) -> torch.Tensor:
    """Sums and products wrap; avg is the wrapped sum over p, rounded towards zero."""
    arrays = np.stack([x.numpy() for x in inputs])
    functions = {
        "sum": np.add,
        "avg": np.add,
        "product": np.multiply,
        "min": np.minimum,
        "max": np.maximum,
        "band": np.bitwise_and,
        "bor": np.bitwise_or,
        "bxor": np.bitwise_xor,
    }
    with np.errstate(over="ignore"):
        result = functions[op].reduce(arrays, axis=0, dtype=arrays.dtype)
    if op == "avg":
        p = len(inputs)
        result = np.array([abs(int(v)) // p * (1 if v >= 0 else -1) for v in result], arrays.dtype)
    return torch.from_numpy(np.ascontiguousarray(result))


def _widen(x: torch.Tensor) -> torch.Tensor:
    if x.dtype == torch.complex32:
        return torch.view_as_complex(torch.view_as_real(x).float())
    return x.float() if x.dtype.itemsize < 4 else x


def _narrow(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if dtype == torch.complex32:
        return torch.view_as_complex(torch.view_as_real(x).to(torch.float16))
    return x.to(dtype)


def _times(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a * b, for complex numbers by the textbook formula, every operation rounded."""
    if not a.is_complex():
        return a * b
    return torch.complex(a.real * b.real - a.imag * b.imag, a.real * b.imag + a.imag * b.real)


def _fold(inputs: list[torch.Tensor], op: str) -> torch.Tensor:
    """One pass in the order of the ranks, in float32 or wider, rounded once at the end."""
    total = _widen(inputs[0])
    for x in inputs[1:]:
        total = _times(total, _widen(x)) if op == "product" else total + _widen(x)
    if op == "avg":
        parts = torch.view_as_real(total) if total.is_complex() else total
        parts = parts / len(inputs)
        total = torch.view_as_complex(parts) if total.is_complex() else parts
    return _narrow(total, inputs[0].dtype)
