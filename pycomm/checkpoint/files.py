# SPDX-License-Identifier: MIT
"""What a checkpoint does to the disk, each operation by name.

Tests give a Checkpointer another one of these, which dies or fails in the middle of an operation.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemWriter

from pycomm import durable


class Files:
    """The operations on the real file system."""

    def make_folder(self, path: Path) -> None:
        """Make a new folder."""
        path.mkdir()

    @contextmanager
    def create(self, path: Path) -> Iterator[IO[bytes]]:
        """Open a new file to write."""
        with path.open("xb") as file:
            yield file

    def sync_file(self, path: Path) -> None:
        """Return when a file's bytes are on the disk."""
        durable.sync_file(path)

    def sync_folder(self, path: Path) -> None:
        """Return when a folder's names are on the disk."""
        durable.sync_folder(path)

    def rename(self, path: Path, target: Path) -> None:
        """Give a file or folder another name, which nothing has."""
        os.rename(path, target)

    def remove(self, path: Path) -> None:
        """Remove a folder and all in it."""
        shutil.rmtree(path)


class _Adapted(FileSystem):
    """Files as torch.distributed.checkpoint wants them."""

    def __init__(self, files: Files) -> None:
        self._files = files

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[IO[bytes]]:  # type: ignore[override]
        if mode != "wb":
            with super().create_stream(path, mode) as stream:
                yield cast(IO[bytes], stream)
            return
        with self._files.create(Path(path)) as file:
            watched = _Watched(file)
            try:
                yield cast(IO[bytes], watched)
            except Exception as error:
                if watched.error is not None:
                    raise watched.error from error
                raise

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        self._files.rename(Path(path), Path(new_path))


class _Watched:
    """A file that remembers the disk's error: torch.save hides it behind one of its own."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class Writer(FileSystemWriter):
    """torch's writer over Files. What is written is synced later, all of it at once."""

    def __init__(self, path: Path, files: Files) -> None:
        super().__init__(path, sync_files=False)
        self.fs = _Adapted(files)
