# SPDX-License-Identifier: MIT
"""Read entries of a checkpoint: every rank what it needs, without talking to the others."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from pycomm.checkpoint.state import Saved
from pycomm.errors import CheckpointError


def open_saved(path: Path, manifest: dict[str, Any]) -> Saved:
    """Return a checkpoint's entries, to be loaded from its folder; local."""
    metadata = FileSystemReader(path).read_metadata().state_dict_metadata
    sizes = {
        key: (one.size, one.properties.dtype) if isinstance(one, TensorStorageMetadata) else None
        for key, one in metadata.items()
    }

    def read(target: dict[str, Any]) -> None:
        if not target:
            return
        planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="torch.distributed is disabled")
                state_dict_loader.load(
                    target, storage_reader=FileSystemReader(path), planner=planner, no_dist=True
                )
        except CheckpointException as error:
            causes = "; ".join(str(cause) for cause, _ in error.failures.values())
            raise CheckpointError(f"{path} cannot be read: {causes}") from error

    return Saved(manifest["entries"], int(manifest["world_size"]), sizes, read)
