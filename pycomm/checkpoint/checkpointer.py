# SPDX-License-Identifier: MIT
"""Checkpointer: saves training's state while it goes on, loads it, and ends it on a signal."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import warnings
from collections.abc import Mapping, MutableMapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pycomm.checkpoint import folder as names
from pycomm.checkpoint.files import Files
from pycomm.checkpoint.lineage import Lineage, to_try
from pycomm.checkpoint.reading import open_saved
from pycomm.checkpoint.signals import Signals
from pycomm.checkpoint.state import Entries
from pycomm.checkpoint.structure import staged
from pycomm.checkpoint.together import Together
from pycomm.checkpoint.writing import Content, write
from pycomm.errors import CheckpointError, UsageError


class Checkpointer:
    """Checkpoints in a folder: atomic, complete, loadable at another world size and layout.

        checkpointer = Checkpointer("out/checkpoints", keep=3)
        state = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "data": loader}
        begin = checkpointer.load(state) or 0            # 0: there is none yet
        ...
        checkpointer.save(step, state)                   # returns when the state is copied

    A state maps names to models, optimizers, other things with state_dict() and load_state_dict(),
    and plain values. The random generators of each rank are saved besides. Making one is collective
    where torch.distributed is initialised, and so are all methods that do not say local; all ranks
    call them in the same order with the same arguments. Without torch.distributed it is for one
    process.

    Args:
        folder: Where checkpoints are; made if it is not there. All ranks must see the same one.
        keep: How many to keep, the newest; None keeps all.
        every: Steps between the saves of after_step; None: it saves on a signal only.
        async_: save() returns when the state is copied, and a thread writes the copy; training may
            go on, by collectives, too: the writer has a group of its own.
        random_state: Save and load the random generators of Python, NumPy and torch.
        process_group: The ranks. Default: the default group.
        files: What touches the disk; another one for tests.

    Raises:
        UsageError: an argument is not understood.
        CheckpointError: the folder cannot be made.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        keep: int | None = 3,
        every: int | None = None,
        async_: bool = True,
        random_state: bool = True,
        process_group: Any = None,
        files: Files | None = None,
    ) -> None:
        for name, value in (("keep", keep), ("every", every)):
            if value is not None and (type(value) is not int or value < 1):
                raise UsageError(f"Checkpointer: got {name}={value!r}, expected 1 or more, or None")
        self.folder, self.every = Path(folder), every
        self._keep, self._async, self._random_state = keep, async_, random_state
        self._files = files or Files()
        grouped = dist.is_available() and dist.is_initialized()
        self._trainers = (process_group or dist.group.WORLD) if grouped else None
        # The writer's collectives and training's have no order between them: two groups.
        self._together = Together(_own_group(self._trainers))
        self._thread = ThreadPoolExecutor(1, "checkpoint") if async_ else None
        self._pending: Future[Path] | None = None
        self._copy: dict[str, Any] = {}
        self._signals = Signals()
        what = f"the folder of checkpoints {self.folder} cannot be made"
        self._together.first(what, lambda: self.folder.mkdir(parents=True, exist_ok=True))
        self._cleaned = False
        self._lineage = Lineage()

    # ---- save

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Save a state; returns when it is copied, or written if not async_.

        A save before that has not ended is waited for. An error of it is raised here.

        Args:
            step: Number of steps done, 0 or more; load returns it.
            state: What to save, by name.

        Raises:
            CheckpointError: this save, or the asynchronous one before, was not written.
            UsageError: the state cannot be saved.
        """
        self.wait()
        if type(step) is not int or step < 0:
            raise UsageError(f"Checkpointer.save: got step={step!r}, expected 0 or more")
        entries = Entries(state, self._random_state)
        flat = entries.flat(self._together.rank)
        content = Content(flat, entries.kinds(), entries.of_first_rank())
        if self._thread is None:
            self._write(step, content)
            return
        # What the copies were made of may be gone by the next save; only the copies are kept.
        self._copy = staged(flat, self._copy)
        self._pending = self._thread.submit(self._write, step, content._replace(flat=self._copy))

    def _write(self, step: int, content: Content) -> Path:
        if not self._cleaned:
            what = f"unfinished checkpoints in {self.folder}"
            self._together.first(what, self._remove_parts)
            self._cleaned = True
        return write(
            self.folder, step, content, self._together, self._files, self._keep, self._lineage
        )

    def _remove_parts(self) -> None:
        """What a run that died has left of a save; another live run's would go, too."""
        for path in names.parts(self.folder):
            with contextlib.suppress(OSError):
                self._files.remove(path)

    def wait(self) -> None:
        """Return when the last save is on the disk. Local; all ranks' saves end together.

        Raises:
            CheckpointError: it was not written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    # ---- load

    def latest(self) -> int | None:
        """Return the step of the newest checkpoint, or None. Local; nothing is verified."""
        found = names.found(self.folder)
        return found[0].step if found else None

    def load(self, state: Mapping[str, Any], step: int | None = None) -> int | None:
        """Give everything in a state what was saved, and return the step it was saved at.

        The newest checkpoint whose files have their checksums is loaded; one that is broken is
        named in a warning, and the one before it is tried. If a run has loaded an older one and
        gone on from there, its last is the newest: later ones are abandoned, and loaded only by
        their step. Loading alone changes nothing in the folder. Models and optimizers are loaded
        whatever the world size and layout were, in place. What each rank has its own of is loaded
        by the rank of the same number, and by none if there was none; ShardedSampler and
        ShardedLoader get every rank's. Plain values are replaced in `state`. Names that were saved
        and are not asked for are left aside.

        Args:
            state: What to load, by name: as given to save, or less.
            step: Which to load, of the same step the one saved last. Default: the newest.

        Returns:
            The step, or None if there is no checkpoint at all (nothing is changed then).

        Raises:
            CheckpointError: there are checkpoints, or one was asked for, and none can be loaded.
            UsageError: the state asks for what was not saved, or has other shapes.
        """
        self.wait()
        found = self._newest_whole(step)
        if found is None:
            return None
        path = found.path
        entries = Entries(state, self._random_state)
        manifest = names.read_manifest(path)
        plain = open_saved(path, manifest).load(entries, self._together.rank)
        if plain:
            if not isinstance(state, MutableMapping):
                raise UsageError(
                    f"Checkpointer.load: {sorted(plain)} are plain values, which are replaced in "
                    "the state: give it as a dict"
                )
            state.update(plain)
        # Nobody may go on to write, and to remove old checkpoints, while others still read.
        self._together.each(f"loading {path}", lambda: None)
        self._lineage.stand(found, names.to_past(manifest))
        return int(manifest["step"])

    def _newest_whole(self, step: int | None) -> names.Found | None:
        together, what = self._together, f"checkpoints in {self.folder}"
        found = together.first(what, lambda: names.found(self.folder))
        wanted = [one for one in found if one.step == step]
        if step is None:
            wanted = together.first(what, lambda: to_try(found, names.past_of))
        for one in wanted:
            path, rank, ranks = one.path, together.rank, together.world_size
            verdicts = together.each(
                f"verifying {path}",
                lambda path=path, rank=rank, ranks=ranks: names.broken(path, rank, ranks),  # type: ignore[misc]
            )
            wrong = [text for text in verdicts if text is not None]
            if not wrong:
                return one
            warnings.warn(f"checkpoint {path} is broken and left aside: {wrong[0]}", stacklevel=3)
        if wanted or step is not None:
            have = ", ".join(str(one.step) for one in found) or "none"
            raise CheckpointError(
                f"no checkpoint{f' of step {step}' if step is not None else ''} in {self.folder} "
                f"can be loaded; there are those of steps: {have}. To begin anew, move them away"
            )
        return None

    # ---- signals

    def on_signal(self, *signals: signal.Signals) -> None:
        """From now on a signal ends training after a step, with a checkpoint. Local.

        The handler only takes a note, which stop_requested and after_step look at. Schedulers send
        SIGTERM or SIGUSR1 some time before they kill. Call it on the main thread; close() gives the
        signals back.

        Args:
            signals: Which. Default: SIGTERM and SIGUSR1.
        """
        self._signals.take(*signals)

    def stop_requested(self) -> bool:
        """Return whether any rank has got a signal of on_signal: the same answer on all ranks.

        One all_reduce of one number on the group of training: call it between steps.
        """
        if self._trainers is None:
            return bool(self._signals.seen)
        on_gpu = dist.get_backend(self._trainers) == "nccl"
        flag = torch.tensor(self._signals.seen, device="cuda" if on_gpu else "cpu")
        dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._trainers)
        return bool(flag.item())

    def after_step(self, step: int, state: Mapping[str, Any]) -> None:
        """Save if `step` is a multiple of `every`; after a signal save, wait, and exit.

        Args:
            step: Number of steps done.
            state: As save's.

        Raises:
            SystemExit: with code 0, after a signal, when the checkpoint is on the disk.
            CheckpointError: as save.
        """
        stop = bool(self._signals) and self.stop_requested()
        if stop or (self.every is not None and step % self.every == 0):
            self.save(step, state)
        if stop:
            self.close()
            sys.exit(0)

    # ---- end

    def close(self) -> None:
        """Wait for the last save and give signals back; before destroy_process_group. Local."""
        try:
            self.wait()
        finally:
            self._signals.give_back()
            if self._thread is not None:
                self._thread.shutdown()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _own_group(trainers: Any) -> Any:
    """A group of the same ranks for the writer, on CPU tensors."""
    if trainers is None:
        return None
    backend = dist.get_backend(trainers)
    ranks = dist.get_process_group_ranks(trainers)
    return dist.new_group(ranks, backend="gloo" if backend == "nccl" else backend)
