# SPDX-License-Identifier: MIT
"""pycomm: collective communication for PyTorch.

Importing this registers the backend "pycomm" and does nothing else; where pycomm is installed even
the import is not needed:

    import torch, torch.distributed as dist
    dist.init_process_group("pycomm")          # under torchrun
    x = torch.ones(4)                          # float32[4]
    dist.all_reduce(x)                         # the sum over all ranks
    dist.destroy_process_group()
"""

from pycomm.errors import Aborted, CommError, Mismatch, PeerFailure, Timeout, UsageError
from pycomm.options import Options
from pycomm.registration import autoload

__version__ = "0.1.0"
__all__ = [
    "Aborted",
    "CommError",
    "Mismatch",
    "Options",
    "PeerFailure",
    "Timeout",
    "UsageError",
]

autoload()
