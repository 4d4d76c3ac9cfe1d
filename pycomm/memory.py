# SPDX-License-Identifier: MIT
"""The arena: memory of this process that the other ranks of its host can map.

Tensors in it are reduced and moved in place, without copies through a ring. docs/arena.md says what
that means for fork, for memory accounting and for tensors that outlive a group.
"""

from __future__ import annotations

import warnings
from contextlib import ContextDecorator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_installed = False
_OVERRIDDEN = (
    "pycomm's arena serves no tensors: torch has an allocator of CPU memory that was installed "
    "with a higher priority, and keeps it; ask for arena memory with Backend.allocate_tensor, or "
    "run without that allocator"
)


class _Arena(ContextDecorator):
    """Has no state of its own, so that one may be entered again while it is active."""

    def __enter__(self) -> None:
        from pycomm.native import load

        if not load().arena_install():
            warnings.warn(_OVERRIDDEN, RuntimeWarning, stacklevel=2)

    def __exit__(self, *_: object) -> None:
        from pycomm.native import load

        load().arena_uninstall()


def arena() -> _Arena:
    """Returns a context in which large new CPU tensors come from the arena; local.

        with pycomm.arena():
            model = build()          # parameters, and DDP's buckets if DDP is built here
            ddp = DistributedDataParallel(model)

    All tensors of 64 KiB and more that any thread of the process makes meanwhile, whoever asks for
    them. They stay there after the context ends. When the arena is full, or there is none,
    allocations are ordinary memory, which every collective takes as well. May be nested and
    entered again. PYCOMM_ARENA=1 does the same for the whole life of the process.
    """
    return _Arena()


def install() -> None:
    """Makes the context permanent, for PYCOMM_ARENA=1; local, idempotent."""
    global _installed
    if not _installed:
        arena().__enter__()
        _installed = True


def holds(tensor: torch.Tensor) -> bool:
    """Whether all of the tensor's storage lies in the arena; local. False in a forked child."""
    from pycomm.native import load

    storage = tensor.untyped_storage()
    if storage.device.type != "cpu":
        return False
    held: bool = load().arena_holds(storage.data_ptr(), storage.nbytes())
    return held


def statistics() -> dict[str, int]:
    """Returns what the arena of this process holds; local.

    Returns:
        capacity_bytes (0: there is none), used_bytes, used_peak_bytes, touched_bytes (in use or
        kept for the next tensor), quarantined_bytes (never used again, since a failed group may
        still write there), blocks (allocations so far), fallbacks (allocations that became
        ordinary memory).
    """
    from pycomm.native import load

    found: dict[str, int] = load().arena_statistics()
    return found


def trim() -> int:
    """Gives free memory of the arena back to the system and returns how many bytes; local.

    The arena keeps what tensors leave behind, since new pages are dear. Call this after a phase
    that used far more than the next one will.
    """
    from pycomm.native import load

    freed: int = load().arena_trim()
    return freed
