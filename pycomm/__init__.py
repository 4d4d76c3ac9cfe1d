# SPDX-License-Identifier: MIT
"""pycomm: collective communication for PyTorch and for plain arrays, and training on top of it.

dist.init_process_group("pycomm")          # under torchrun; needs no import of pycomm
dist.all_reduce(torch.ones(4))             # the sum over all ranks
ctx = pycomm.init(pycomm.Layout(dp=2))     # docs/training.md
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
    from pycomm.layout import Layout
    from pycomm.train.context import init

__version__ = "0.1.0"
__all__ = [
    "Aborted",
    "CommError",
    "Communicator",
    "DataParallel",
    "Layout",
    "Mismatch",
    "Options",
    "PeerFailure",
    "Timeout",
    "UsageError",
    "arena",
    "init",
]

autoload()
