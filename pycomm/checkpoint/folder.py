# SPDX-License-Identifier: MIT
"""A folder of checkpoints: their names, their manifests, and whether one is whole.

step-00000100/          named when it is whole, and not before
__0_0.distcp        what rank 0 has written, in torch.distributed.checkpoint's format
.metadata           that format's index
manifest.json       every file's size and SHA-256, and what is in the checkpoint
step-00000100.1/        saved on course 1, by a run that left course 0 before: see lineage.py
.part-00000200-6f3a/    one that is being written, or whose writer died
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

MANIFEST = "manifest.json"
PART = ".part-"
_NAME = re.compile(r"step-(\d{8,})(?:\.(\d+))?")
_READ_BYTES = 1 << 20
Past = tuple[tuple[int, int], ...]  # see lineage.py


class Found(NamedTuple):
    """A checkpoint by its name: newest are largest."""

    course: int
    step: int
    path: Path


def found(folder: Path) -> list[Found]:
    """Return the checkpoints in a folder, newest first; they may be broken."""
    names = [(path, _NAME.fullmatch(path.name)) for path in folder.glob("step-*")]
    every = [Found(int(m[2] or 0), int(m[1]), path) for path, m in names if m and path.is_dir()]
    return sorted(every, reverse=True)


def parts(folder: Path) -> list[Path]:
    """Return what unfinished saves have left in a folder."""
    return [path for path in folder.glob(PART + "*") if path.is_dir()]


def name_of(course: int, step: int) -> str:
    """Return the name of a checkpoint."""
    return f"step-{step:08d}" + (f".{course}" if course else "")


def digest(path: Path) -> dict[str, Any]:
    """Return a file's size in bytes and its SHA-256."""
    sha256, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while data := file.read(_READ_BYTES):
            sha256.update(data)
            size += len(data)
    return {"bytes": size, "sha256": sha256.hexdigest()}


def read_manifest(path: Path) -> dict[str, Any]:
    """Return a checkpoint's manifest.

    Raises:
        OSError: there is none.
        ValueError: it is damaged.
    """
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    if not isinstance(manifest, dict) or manifest.get("format") != "pycomm checkpoint":
        raise ValueError("it is not a manifest of pycomm")
    if manifest["sha256"] != manifest_digest(manifest):
        raise ValueError("its own checksum is another")
    if manifest["version"] != 1:
        raise ValueError(f"it has version {manifest['version']}, this pycomm reads 1")
    return manifest


def past_of(one: Found) -> Past | None:
    """Return the past of a checkpoint, or None if its manifest cannot be read."""
    try:
        return to_past(read_manifest(one.path))
    except (OSError, ValueError, KeyError):
        return None


def to_past(manifest: dict[str, Any]) -> Past:
    """Return the past that is in a manifest."""
    return tuple((int(course), int(until)) for course, until in manifest["past"])


def manifest_digest(manifest: dict[str, Any]) -> str:
    """Return the SHA-256 of a manifest, without that entry."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def broken(path: Path, share: int = 0, shares: int = 1) -> str | None:
    """Return what is wrong with a checkpoint, naming the file, or None.

    Args:
        path: Its folder.
        share: Which of the files to read: every `shares`th one from there.
        shares: How many ranks share the reading.
    """
    try:
        manifest = read_manifest(path)
    except (OSError, ValueError, KeyError) as error:
        return f"{path / MANIFEST}: {_reason(error)}"
    names: Sequence[str] = sorted(manifest["files"])
    for name in names[share::shares]:
        file, want = path / name, manifest["files"][name]
        try:
            got = digest(file)
        except OSError as error:
            return f"{file}: {_reason(error)}"
        if got["bytes"] != want["bytes"]:
            return f"{file}: it has {got['bytes']} bytes, {want['bytes']} were written"
        if got != want:
            return f"{file}: its checksum is another than when it was written"
    return None


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "it is missing"
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
