# SPDX-License-Identifier: MIT
"""What is measured: a cell is one collective at one size, dtype and world size."""

from __future__ import annotations

from dataclasses import dataclass

COLLECTIVES = (
    "all_reduce",
    "broadcast",
    "all_gather",
    "reduce_scatter",
    "all_to_all",
    "barrier",
)
ITEMSIZES = {
    "float32": 4,
    "float64": 8,
    "float16": 2,
    "bfloat16": 2,
    "int8": 1,
    "int32": 4,
    "int64": 8,
}
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
QUICK_SIZES = "8,16K,1M,16M"
FULL_SIZES = "8,1K,16K,64K,256K,1M,4M,16M,64M,256M"


@dataclass(frozen=True)
class Cell:
    """One line of the table.

    Attributes:
        collective: One of COLLECTIVES.
        bytes: Size of the larger side: the whole vector of all_reduce and broadcast, the blocks of
            all ranks together in the others. 0 for a barrier.
        dtype: One of ITEMSIZES.
        world: Number of ranks.
    """

    collective: str
    bytes: int
    dtype: str
    world: int

    def command(self) -> str:
        """The line that makes a rank ready for this cell."""
        return f"cell {self.collective} {self.dtype} {self.bytes}"

    def __str__(self) -> str:
        size = "" if self.collective == "barrier" else f" {size_text(self.bytes)} {self.dtype}"
        return f"{self.collective}{size}, {self.world} ranks"


def parse_size(text: str) -> int:
    """Bytes of a size such as 16K."""
    unit = text[-1:].upper() if text[-1:].upper() in ("K", "M", "G") else ""
    number = text[: len(text) - len(unit)]
    if not number.isdigit() or int(number) == 0:
        raise ValueError(f"{text!r} is not a size; write bytes, or 16K, 4M, 1G")
    return int(number) * UNITS[unit]


def size_text(size: int) -> str:
    """Bytes as people write them: 16 KiB."""
    for unit in ("G", "M", "K"):
        if size >= UNITS[unit] and size % UNITS[unit] == 0:
            return f"{size // UNITS[unit]} {unit}iB"
    return f"{size} B"


def list_cells(
    collectives: list[str], sizes: list[int], dtypes: list[str], worlds: list[int]
) -> list[Cell]:
    """All combinations, smallest first within a collective; sizes hold a whole block per rank."""
    cells = []
    for world in worlds:
        for collective in collectives:
            if collective not in COLLECTIVES:
                raise ValueError(f"{collective!r}: expected one of {', '.join(COLLECTIVES)}")
            if collective == "barrier":
                cells.append(Cell(collective, 0, "float32", world))
                continue
            for dtype in dtypes:
                if dtype not in ITEMSIZES:
                    raise ValueError(f"{dtype!r}: expected one of {', '.join(ITEMSIZES)}")
                whole = ITEMSIZES[dtype] * (
                    1 if collective in ("all_reduce", "broadcast") else world
                )
                for size in sorted(sizes):
                    rounded = max(whole, size // whole * whole)
                    cells.append(Cell(collective, rounded, dtype, world))
    return list(dict.fromkeys(cells))
