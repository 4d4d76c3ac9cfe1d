# SPDX-License-Identifier: MIT
"""pycomm: collective communication for PyTorch, and for plain arrays: Communicator.

Importing this registers the backend "pycomm"; where pycomm is installed it is not needed:

    import torch, torch.distributed as dist
    dist.init_process_group("pycomm")          # under torchrun
    x = torch.ones(4)                          # float32[4]
    dist.all_reduce(x)                         # the sum over all ranks
    dist.destroy_process_group()
"""

from typing import TYPE_CHECKING

from pycomm.errors import Aborted, CommError, Mismatch, PeerFailure, Timeout, UsageError
from pycomm.memory import arena
from pycomm.options import Options
from pycomm.registration import autoload
from pycomm.registration import load_later as __getattr__  # noqa: F401

if TYPE_CHECKING:
    from pycomm.communicator import Communicator
    from pycomm.data_parallel import DataParallel

__version__ = "0.1.0"
__all__ = [
    "Aborted",
    "CommError",
    "Communicator",
    "DataParallel",
    "Mismatch",
    "Options",
    "PeerFailure",
    "Timeout",
    "UsageError",
    "arena",
]

autoload()
