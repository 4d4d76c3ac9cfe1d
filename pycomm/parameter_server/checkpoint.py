# SPDX-License-Identifier: MIT
"""A server's checkpoints: one file for each server and clock, written whole or not at all.

    folder/server0of2-00000300.pt

Each is written under another name, flushed to the disk and renamed, so that a file of this name is
complete. Servers go on from the newest clock of which all of them have a file. The clock is that of
the slowest worker; between servers' states of one clock lie no other updates in sync mode, and some
in the others.
"""

from __future__ import annotations

import copy
import os
import re
import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pycomm import durable
from pycomm.errors import UsageError
from pycomm.parameter_server.pair import Meeting

_NAME = re.compile(r"server(\d+)of(\d+)-(\d+)\.pt")


class Saver:
    """Writes one server's checkpoints in a thread of its own, and removes old ones.

    A checkpoint is removed when two newer ones are whole: have a file of every server.
    """

    def __init__(self, folder: str | os.PathLike[str], index: int, meeting: Meeting) -> None:
        """Local; makes the folder.

        Raises:
            OSError: it cannot be made.
        """
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._index, self._servers, self._meeting = index, 1, meeting
        self._whole: list[int] = []  # clocks
        self._writing: threading.Thread | None = None
        self.error: BaseException | None = None

    def agree(self, servers: int) -> int:
        """The newest clock of which all servers have a checkpoint, or -1; blocks for them.

        Newer ones are removed: they would be taken for parts of what is written from here on.

        Raises:
            UsageError: there are checkpoints, but none of all servers, or of another number of
                servers: they are left.
            CommError: a server did not come.
        """
        self._servers = servers
        mine = clocks_in(self.folder, self._index, servers)
        self._refuse_others(mine)
        self._meeting.tell(f"saved{self._index}", mine)
        every = {self._index: mine}
        for other in range(servers):
            if other != self._index:
                why = f"server {other} of {servers} is absent"
                every[other] = self._meeting.ask(f"saved{other}", why)
        common = set(mine).intersection(*every.values())
        self._whole = sorted(common)
        newest = max(common, default=-1)
        # But for the first: a run may have ended before all servers had written theirs.
        if newest < 0 and max(map(len, every.values())) > 1:
            raise UsageError(
                f"Server: {self.folder}: servers have checkpoints of these clocks, by server: "
                f"{dict(sorted(every.items()))}, and none in common; give every server the folder "
                "it had, or to begin anew other folders"
            )
        for clock in mine:
            if clock > newest:
                self._path(clock).unlink()
        return newest

    def _refuse_others(self, mine: list[int]) -> None:
        """A run of so many servers does not begin anew beside newer checkpoints of another."""
        names = (_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        found = [tuple(map(int, match.groups())) for match in names if match]
        newest = max(mine, default=-1)
        others = {of for index, of, clock in found if index == self._index and clock > newest}
        if others:
            raise UsageError(
                f"Server: {self.folder} has checkpoints of {min(others)} servers, here are "
                f"servers={self._servers}; give as many, or another folder"
            )

    def load(self, clock: int) -> dict[str, Any]:
        """One of them."""
        state: dict[str, Any] = torch.load(self._path(clock), weights_only=True)
        return state

    def save(self, clock: int, state: dict[str, Any]) -> None:
        """Copies the state and begins to write it; waits for the one before."""
        self.wait()
        kept = copy.deepcopy(state)
        self._writing = threading.Thread(
            target=self._write, args=(clock, kept), name="checkpoint", daemon=True
        )
        self._writing.start()

    def wait(self) -> None:
        """Until nothing is being written."""
        if self._writing is not None:
            self._writing.join()
            self._writing = None

    def _path(self, clock: int) -> Path:
        return self.folder / f"server{self._index}of{self._servers}-{clock:08d}.pt"

    def _write(self, clock: int, state: dict[str, Any]) -> None:
        path = self._path(clock)
        half = path.with_suffix(".half")
        try:
            torch.save(state, half)
            durable.replace(half, path)
            self._remove_old(clock)
        except BaseException as error:  # noqa: BLE001 - the server says so and goes on
            self.error = error
            half.unlink(missing_ok=True)

    def _remove_old(self, written: int) -> None:
        self._meeting.store.add(f"wrote{written}", 1)
        there = clocks_in(self.folder, self._index, self._servers)
        for clock in there:
            if int(self._meeting.store.add(f"wrote{clock}", 0)) == self._servers:
                self._whole.append(clock)
        oldest_kept = sorted({-1, -2, *self._whole})[-2]
        for clock in there:
            if clock < oldest_kept:
                self._path(clock).unlink(missing_ok=True)


def clocks_in(folder: Path, index: int, servers: int) -> list[int]:
    """The clocks of which a folder has server `index`'s checkpoint, oldest first."""
    found = (_NAME.fullmatch(path.name) for path in folder.iterdir())
    numbers = [tuple(map(int, match.groups())) for match in found if match]
    return sorted(clock for i, of, clock in numbers if (i, of) == (index, servers))


def load_parameters(folder: str | os.PathLike[str], clock: int | None = None) -> dict[str, Tensor]:
    """Returns whole parameters from the checkpoints of all servers; local.

    Args:
        folder: Where all servers have saved.
        clock: Which; None: the newest of which all servers have one.

    Returns:
        float32 tensors by parameter name, as a state_dict without buffers.

    Raises:
        UsageError: the folder has no complete set.
    """
    path = Path(folder)
    found = [match for one in path.iterdir() if (match := _NAME.fullmatch(one.name))]
    sets: dict[tuple[int, int], set[int]] = {}
    for match in found:
        index, servers, at = map(int, match.groups())
        sets.setdefault((at, servers), set()).add(index)
    whole = [key for key, indices in sets.items() if len(indices) == key[1]]
    chosen = [key for key in whole if clock is None or key[0] == clock]
    if not chosen:
        raise UsageError(
            f"{path} has no checkpoint of all servers"
            + ("" if clock is None else f" at clock {clock}")
            + f"; whole ones are at {sorted(at for at, _ in whole) or 'no clock'}"
        )
    at, servers = max(chosen)
    parameters: dict[str, Tensor] = {}
    for index in range(servers):
        state = torch.load(path / f"server{index}of{servers}-{at:08d}.pt", weights_only=True)
        for name, shape in state["shapes"].items():
            if name not in parameters:
                parameters[name] = torch.zeros(shape)
        pieces = torch.split(
            state["shard"]["values"], [end - begin for _, begin, end in state["pieces"]]
        )
        for (name, begin, end), piece in zip(state["pieces"], pieces, strict=True):
            parameters[name].view(-1)[begin:end] = piece
    return parameters
