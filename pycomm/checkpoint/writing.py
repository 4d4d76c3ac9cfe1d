# SPDX-License-Identifier: MIT
"""Write one checkpoint: all of it by all ranks, then its name by rank 0."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

from pycomm.checkpoint import folder as names
from pycomm.checkpoint.files import Files, Writer
from pycomm.checkpoint.together import Together
from pycomm.errors import CheckpointError

# A process without torch.distributed is nothing to be warned of, in a thread that cannot catch it.
warnings.filterwarnings(
    "ignore",
    message="torch.distributed is disabled, unavailable or uninitialized, assuming the "
    "intent is to save",
)


def write(
    folder: Path,
    step: int,
    flat: dict[str, Any],
    entries: dict[str, str],
    together: Together,
    files: Files,
    keep: int | None,
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
        _write_data(what, part, flat, together, files)
        mine = together.each(what, lambda: _sync(part, together.rank, files))
        digests = {name: one for written in mine for name, one in written.items()}
        manifest = {
            "format": "pycomm checkpoint",
            "version": 1,
            "step": step,
            "world_size": together.world_size,
            "torch": str(torch.__version__),
            "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "entries": entries,
            "files": digests,
        }
        path = together.first(what, lambda: _give_name(folder, part, manifest, files))
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


def _write_data(
    what: str, part: Path, flat: dict[str, Any], together: Together, files: Files
) -> None:
    try:
        state_dict_saver.save(
            flat,
            storage_writer=Writer(part, files),
            planner=DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
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


def _give_name(folder: Path, part: Path, manifest: dict[str, Any], files: Files) -> Path:
    manifest["sha256"] = names.manifest_digest(manifest)
    with files.create(part / names.MANIFEST) as file:
        file.write(json.dumps(manifest, indent=1, sort_keys=True).encode() + b"\n")
    files.sync_file(part / names.MANIFEST)
    files.sync_folder(part)
    path = folder / names.new_name(folder, int(manifest["step"]))
    files.rename(part, path)
    files.sync_folder(folder)
    return path


def _prune(folder: Path, written: Path, keep: int | None, files: Files) -> None:
    """Remove all but the newest `keep` checkpoints up to the one written, the oldest first.

    Those of later steps are broken, or of a course that was left for an earlier checkpoint. They
    stay, and take no place from those of the course that goes on.
    """
    found = names.found(folder)
    this = next(one for one in found if one.path == written)
    course = [one for one in found if one <= this]
    for one in reversed(course[keep:] if keep is not None else []):
        # Under another name first: a removal that is cut short must not leave half a checkpoint.
        gone = folder / f"{names.PART}{one.path.name}-{secrets.token_hex(4)}"
        files.rename(one.path, gone)
        files.remove(gone)
