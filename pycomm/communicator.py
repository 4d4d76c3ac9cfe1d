# SPDX-License-Identifier: MIT
"""The plain array face: collectives on NumPy arrays and their like, without torch.distributed.

    import numpy as np, pycomm

    with pycomm.Communicator() as comm:     # under torchrun, mpiexec, srun, or one rank alone
        x = np.ones(4, np.float32)
        comm.all_reduce(x)                  # in place: the sum over all ranks

An array is anything with the buffer protocol, a torch tensor, or anything with __dlpack__, in CPU
memory. docs/array.md has the rules.
"""

from __future__ import annotations

import array
import math
import os
from datetime import timedelta
from types import TracebackType
from typing import Any, cast

import numpy as np
import torch
from torch._C._distributed_c10d import HashStore, PrefixStore, Store
from torch.distributed import DistError
from torch.distributed.rendezvous import rendezvous

from pycomm import backend
from pycomm.errors import CommError, UsageError
from pycomm.launch import detect
from pycomm.native import load
from pycomm.options import Options

load()  # says what is wrong where the module below cannot be loaded
from pycomm._C import Communicator as _Calls  # noqa: E402

_CPU = torch.device("cpu")
_TIMEOUT_S = 30 * 60.0
_FORMS = 'expected "tcp://HOST:PORT", "file:///PATH", or one of torch.distributed\'s stores'


class Communicator(_Calls):
    """One group on one rank. Making it is collective and blocks until all ranks are connected.

    Args:
        rank: This rank, 0 to world_size - 1; None: as the launcher says in the environment, which
            is torchrun or whoever sets RANK and WORLD_SIZE, srun, or mpiexec; without one it is 0.
        world_size: How many ranks there are; None: likewise; without a launcher it is 1.
        store: Where the ranks meet: "tcp://HOST:PORT", which rank 0 listens on, "file:///PATH" on a
            file system that all share, or one of torch.distributed's stores. None: where the
            launcher says, or if rank or world_size is given, at the environment's MASTER_ADDR and
            MASTER_PORT.
        options: Settings of the group; None: those of the environment.

    Raises:
        UsageError: an argument or an environment variable is missing or not understood.
        CommError: a rank did not come or cannot be reached.
    """

    def __init__(
        self,
        rank: int | None = None,
        world_size: int | None = None,
        store: str | Store | None = None,
        options: Options | None = None,
    ) -> None:
        if rank is None or world_size is None:
            launch = detect()
            if rank is None and world_size is None and store is None:
                store = launch.init_method or None
            rank = launch.rank if rank is None else rank
            world_size = launch.world_size if world_size is None else world_size
        self._options = options or Options()
        values = {"timeout_s": _TIMEOUT_S, **self._options.resolved()}
        if not isinstance(store, Store):
            # Apart from what a process group may keep in the same store.
            wait_s = float(values.get("connect_timeout_s", values["timeout_s"]))
            store = PrefixStore("communicator", _open_store(store, rank, world_size, wait_s))
        self._store = store
        self._splits = 0
        self._backend = backend.connect(store, rank, world_size, values, "communicator")
        super().__init__(self._backend)

    def empty(
        self, shape: int | tuple[int, ...], dtype: np.typing.DTypeLike = np.float32
    ) -> np.ndarray[Any, Any]:
        """Returns a new NumPy array, not initialised; local.

        From 64 KiB on it lies in the arena: memory that the ranks of this host share, where
        collectives need fewer copies. It may be used for anything, also after the group is closed.
        """
        kind = np.dtype(dtype)
        wanted = math.prod(shape if isinstance(shape, tuple) else (shape,)) * kind.itemsize
        memory = self._backend.allocate_tensor(wanted, dtype=torch.uint8, device=_CPU)
        return cast("np.ndarray[Any, Any]", memory.numpy().view(kind).reshape(shape))

    def split(self, color: int | None, key: int = 0) -> Communicator | None:
        """Makes groups of the ranks that give the same color; collective over this group, blocking.

        Args:
            color: Any integer; None: this rank joins none.
            key: Ranks of a new group are numbered by key, then by their rank here.

        Returns:
            This rank's new group, with the same options, or None without a color. It lives on when
            this one is closed.

        Raises:
            UsageError: color or key is no integer of 64 bits.
            CommError: the group has failed, or the new one cannot be connected.
        """
        self._splits += 1
        try:
            mine = array.array("q", [color is not None, color or 0, key])
        except (TypeError, OverflowError) as error:
            raise UsageError(
                f"split: got color {color!r} and key {key!r}, expected integers of 64 bits"
            ) from error
        given = array.array("q", bytes(len(mine) * mine.itemsize * self.world_size))
        self.all_gather(mine, given)
        if color is None:
            return None
        members = sorted(
            (given[3 * rank + 2], rank)
            for rank in range(self.world_size)
            if given[3 * rank] and given[3 * rank + 1] == color
        )
        return type(self)(
            [rank for _, rank in members].index(self.rank),
            len(members),
            PrefixStore(f"split{self._splits}/{color}", self._store),
            self._options,
        )

    def __enter__(self) -> Communicator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the group; peers that need this rank are told of the error, if there is one."""
        if kind is None:
            self.close("its with block has ended")
        else:
            self.close(backend.shortened(f"its with block raised {kind.__name__}: {error}"), False)


def _open_store(store: str | None, rank: int, world_size: int, wait_s: float) -> Store:
    """The store at an address; torch's own, so that what torchrun set up is understood."""
    url = "env://" if store is None else store
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if url == "env://" and missing:
        if world_size == 1:
            return HashStore()
        raise UsageError(
            f"Communicator: no store is given and the environment has no {', no '.join(missing)}; "
            f"start the program with torchrun, or give store=, {_FORMS}"
        )
    if not url.startswith(("env://", "tcp://", "file://")):
        raise UsageError(f"Communicator: got store {store!r}, {_FORMS}")
    try:
        opened = next(rendezvous(url, rank, world_size, timeout=timedelta(seconds=wait_s)))
    except DistError as error:
        raise CommError(f"Communicator: the store {url} cannot be reached: {error}") from error
    except (ValueError, AssertionError) as error:
        raise UsageError(f"Communicator: got store {store!r}, {_FORMS}: {error}") from error
    return cast("Store", opened[0])
