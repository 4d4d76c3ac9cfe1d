# SPDX-License-Identifier: MIT
"""Files that are there whole after a crash, or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def sync_file(path: Path) -> None:
    """Return when a file's bytes are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Return when a folder's names are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(part: Path, target: Path) -> None:
    """Give a finished file its name, over what had it; on the disk when it returns."""
    sync_file(part)
    os.replace(part, target)
    sync_folder(target.parent)


def write_text(path: Path, text: str) -> None:
    """Write a small file, whole or not at all; on the disk when it returns."""
    part = path.with_name(path.name + f".{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
