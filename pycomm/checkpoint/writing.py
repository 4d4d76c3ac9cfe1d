# SPDX-License-Identifier: MIT
"""Write one checkpoint: all of it by all ranks, then its name by rank 0."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan

from pycomm.checkpoint import folder as names
from pycomm.checkpoint.files import Files, Writer
from pycomm.checkpoint.lineage import Lineage, descends
from pycomm.checkpoint.together import Together
from pycomm.errors import CheckpointError

# A process without torch.distributed is nothing to be warned of, in a thread that cannot catch it.
warnings.filterwarnings(
    "ignore",
    message="torch.distributed is disabled, unavailable or uninitialized, assuming the "
    "intent is to save",
)


class Content(NamedTuple):
    """What one rank gives to be written.

    Attributes:
        flat: Everything under its full name.
        entries: The kind of each name of the state.
        of_first_rank: Full names of what is to be the lowest rank's, of all that have it.
    """

    flat: dict[str, Any]
    entries: dict[str, str]
    of_first_rank: set[str]


def write(
    folder: Path,
    step: int,
    content: Content,
    together: Together,
    files: Files,
    keep: int | None,
    lineage: Lineage,
) -> Path:
    """Write a checkpoint and return its folder; collective, blocking.

    Its files are written into a folder of another name and synced; each rank says what it has
    written, rank 0 writes that into the manifest and, when all of it is on the disk, gives the
    folder its name. Then rank 0 removes the oldest checkpoints. If anything fails before the name
    is given, what was written is removed, and earlier checkpoints are as they were.

    Raises:
        CheckpointError: on all ranks, if one could not write.
    """
    what = f"checkpoint of step {step} in {folder} was not written, earlier ones are as they were"
    part: Path | None = None
    try:
        part = Path(together.first(what, lambda: str(_make_part(folder, step, files))))
        together.each(what, lambda: _must_be_seen(part))
        _write_data(what, part, content, together, files)
        mine = together.each(what, lambda: _sync(part, together.rank, files))
        digests = {name: one for written in mine for name, one in written.items()}
        manifest = {
            "format": "pycomm checkpoint",
            "version": 1,
            "step": step,
            "world_size": together.world_size,
            "torch": str(torch.__version__),
            "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "entries": content.entries,
            "files": digests,
        }
        path = together.first(what, lambda: _give_name(folder, part, manifest, files, lineage))
    except BaseException:
        if part is not None and together.rank == 0:
            with contextlib.suppress(OSError):
                files.remove(part)
        raise
    if together.rank == 0:
        try:
            _prune(folder, path, keep, files)
        except OSError as error:  # the checkpoint is there: no reason to end training
            warnings.warn(f"old checkpoints in {folder} are left there: {error}", stacklevel=2)
    return path


def _make_part(folder: Path, step: int, files: Files) -> Path:
    part = folder / f"{names.PART}{step:08d}-{os.getpid()}-{secrets.token_hex(4)}"
    files.make_folder(part)
    return part


def _must_be_seen(part: Path) -> None:
    if not part.is_dir():
        raise FileNotFoundError(
            f"{part}, made by rank 0, is not there; the folder must be on a file system that all "
            "ranks share"
        )


class _Planner(DefaultSavePlanner):
    """Of what several ranks have alike each writes a part, by size, but for what is the first's."""

    def __init__(self, of_first_rank: set[str]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._of_first_rank = of_first_rank

    def create_local_plan(self) -> SavePlan:
        return replace(super().create_local_plan(), planner_data=self._of_first_rank)

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        taken: set[str] = set()
        plans = []
        for plan in all_plans:
            items = [item for item in plan.items if item.index.fqn not in taken]
            taken |= plan.planner_data & {item.index.fqn for item in items}
            plans.append(replace(plan, items=items))
        return super().create_global_plan(plans)


def _write_data(what: str, part: Path, content: Content, together: Together, files: Files) -> None:
    try:
        state_dict_saver.save(
            content.flat,
            storage_writer=Writer(part, files),
            planner=_Planner(content.of_first_rank),
            process_group=together.group,
            no_dist=together.group is None,
        )
    except CheckpointException as error:  # the same on all ranks; not an Exception
        causes = {rank: f"{type(c).__name__}: {c}" for rank, (c, _) in error.failures.items()}
        text = "; ".join(f"rank {rank}: {cause}" for rank, cause in sorted(causes.items()))
        raise CheckpointError(f"{what}: {text}") from error


def _sync(part: Path, rank: int, files: Files) -> dict[str, dict[str, Any]]:
    """Sync what this rank has written; return size and checksum of each file."""
    mine = [path for path in part.iterdir() if path.name.startswith(f"__{rank}_")]
    if rank == 0:
        mine.append(part / ".metadata")
    for path in mine:
        files.sync_file(path)
    files.sync_folder(part)
    return {path.name: names.digest(path) for path in mine}


def _give_name(
    folder: Path, part: Path, manifest: dict[str, Any], files: Files, lineage: Lineage
) -> Path:
    step = int(manifest["step"])
    course, manifest["past"] = lineage.next(names.found(folder), step)
    manifest["sha256"] = names.manifest_digest(manifest)
    with files.create(part / names.MANIFEST) as file:
        file.write(json.dumps(manifest, indent=1, sort_keys=True).encode() + b"\n")
    files.sync_file(part / names.MANIFEST)
    files.sync_folder(part)
    path = folder / names.name_of(course, step)
    files.rename(part, path)
    files.sync_folder(folder)
    lineage.stand(names.Found(course, step, path), manifest["past"])
    return path


def _prune(folder: Path, written: Path, keep: int | None, files: Files) -> None:
    """Remove what is older than the newest `keep` that the one written descends from, itself first.

    Abandoned ones take no place from these, and go when the run has left their steps behind.
    """
    if keep is None:
        return
    found = names.found(folder)
    this = next(one for one in found if one.path == written)
    past = names.past_of(this) or ()
    kept = [one for one in found if descends(this, past, one)][:keep]
    old = [one for one in found if one.step < kept[-1].step]
    for one in sorted(old, key=lambda one: one.step):
        # Under another name first: a removal that is cut short must not leave half a checkpoint.
        gone = folder / f"{names.PART}{one.path.name}-{secrets.token_hex(4)}"
        files.rename(one.path, gone)
        files.remove(gone)
