# SPDX-License-Identifier: MIT
"""What can be measured: collectives, dtypes, ops and the cells of a sweep.

A *cell* is one point of a sweep: a collective at one size, dtype, op, placement and world size.
Nothing here needs torch, so that the command line answers at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum


class Whole(Enum):
    """Which side holds ``world * count`` elements; the other side holds ``count``."""

    NEITHER = "neither"
    SOURCE = "source"
    TARGET = "target"
    BOTH = "both"


@dataclass(frozen=True)
class Spec:
    """The shape of one collective.

    Attributes:
        whole: the side that is ``world`` times larger than ``count``.
        placements: forms that torch offers; "in" means that source and target share memory.
        reduces: whether an op (sum, max, ...) applies.
        rooted: whether one rank is the root.
        root_sends: whether only the root contributes data.
        root_receives: whether only the root has a result.
    """

    whole: Whole
    placements: tuple[str, ...]
    reduces: bool = False
    rooted: bool = False
    root_sends: bool = False
    root_receives: bool = False


BOTH_PLACEMENTS = ("out", "in")
SPECS: dict[str, Spec] = {
    "all_reduce": Spec(Whole.NEITHER, ("in",), reduces=True),
    "broadcast": Spec(Whole.NEITHER, ("in",), rooted=True, root_sends=True),
    "reduce": Spec(Whole.NEITHER, ("in",), reduces=True, rooted=True, root_receives=True),
    "all_gather": Spec(Whole.TARGET, BOTH_PLACEMENTS),
    "gather": Spec(Whole.TARGET, BOTH_PLACEMENTS, rooted=True, root_receives=True),
    "scatter": Spec(Whole.SOURCE, BOTH_PLACEMENTS, rooted=True, root_sends=True),
    "reduce_scatter": Spec(Whole.SOURCE, BOTH_PLACEMENTS, reduces=True),
    "all_to_all": Spec(Whole.BOTH, ("out",)),
    "send_recv": Spec(Whole.NEITHER, ("out",)),
    "barrier": Spec(Whole.NEITHER, ("-",)),
}


@dataclass(frozen=True)
class Dtype:
    """A torch dtype's name and exact range.

    Attributes:
        itemsize: bytes of one element.
        exact_max: largest m such that every integer in [0, m] is representable.
        signed: whether [-m, 0] is representable too.
        floating: whether the dtype is a floating point format.
    """

    itemsize: int
    exact_max: int
    signed: bool = True
    floating: bool = True


DTYPES: dict[str, Dtype] = {
    "float32": Dtype(4, 2**24),
    "float64": Dtype(8, 2**53),
    "float16": Dtype(2, 2**11),
    "bfloat16": Dtype(2, 2**8),
    "float8_e4m3fn": Dtype(1, 2**4),
    "float8_e5m2": Dtype(1, 2**3),
    "int64": Dtype(8, 2**63 - 1, floating=False),
    "int32": Dtype(4, 2**31 - 1, floating=False),
    "int16": Dtype(2, 2**15 - 1, floating=False),
    "int8": Dtype(1, 2**7 - 1, floating=False),
    "uint8": Dtype(1, 2**8 - 1, signed=False, floating=False),
}

OPS = ("sum", "avg", "prod", "min", "max", "band", "bor", "bxor")
BITWISE_OPS = ("band", "bor", "bxor")


@dataclass(frozen=True)
class Cell:
    """One point of a sweep.

    Attributes:
        bytes: size of the larger side in bytes, as nccl-tests counts it.
        count: elements of the smaller side (per rank where the larger side is split over ranks).
        op: reduction name, "none" where nothing is reduced.
        root: root rank, -1 where there is none.
        placement: "in", "out", or "-" for a barrier.
        world: number of ranks.
    """

    collective: str
    bytes: int
    count: int
    dtype: str
    op: str
    root: int
    placement: str
    world: int

    @property
    def spec(self) -> Spec:
        """The shape of this cell's collective."""
        return SPECS[self.collective]

    def __str__(self) -> str:
        """Names the cell in messages."""
        place = "in place" if self.placement == "in" else "out of place"
        words = [f"{self.bytes} B", self.dtype, self.op, place] if self.bytes else []
        known = [word for word in words if word != "none"]
        return f"{' '.join([self.collective, *known])}, {self.world} ranks"


def busbw_factor(collective: str, world: int) -> float:
    """Returns busbw / algbw, as nccl-tests defines it (benchmarks/README.md derives it)."""
    if collective == "all_reduce":
        return 2 * (world - 1) / world
    if (
        SPECS[collective].whole is not Whole.NEITHER
    ):  # the block that stays at its rank does not move
        return (world - 1) / world
    return 0.0 if collective == "barrier" else 1.0


def count_for(collective: str, size: int, itemsize: int, world: int) -> int:
    """Returns the smaller side's elements when the larger is about ``size`` bytes; at least 1."""
    parts = world if SPECS[collective].whole is not Whole.NEITHER else 1
    return max(1, size // (itemsize * parts))


def bytes_for(collective: str, count: int, itemsize: int, world: int) -> int:
    """Returns the bytes of the larger side for ``count`` elements on the smaller side."""
    parts = world if SPECS[collective].whole is not Whole.NEITHER else 1
    return count * itemsize * parts


def cells_of(
    collective: str,
    world: int,
    sizes: Sequence[int],
    dtypes: Sequence[str],
    ops: Sequence[str],
    placements: Sequence[str],
    root: int,
) -> Iterator[Cell]:
    """Yields the cells of one collective; sizes that round to the same count appear once.

    A placement that torch does not offer for this collective is skipped, unless none would be left.
    """
    spec = SPECS[collective]
    if collective == "barrier":
        yield Cell("barrier", 0, 0, "none", "none", -1, "-", world)
        return
    forms = [form for form in spec.placements if form in placements] or spec.placements
    for dtype in dtypes:
        itemsize = DTYPES[dtype].itemsize
        counts = dict.fromkeys(count_for(collective, size, itemsize, world) for size in sizes)
        for op in ops if spec.reduces else ("none",):
            for form in forms:
                for count in counts:
                    size = bytes_for(collective, count, itemsize, world)
                    at_root = root if spec.rooted else -1
                    yield Cell(collective, size, count, dtype, op, at_root, form, world)
