# SPDX-License-Identifier: MIT
"""Buffers, such as the running statistics of BatchNorm: the first replica's on all replicas.

Each replica's forwards change its buffers by its own rows. DistributedDataParallel's rule is that
the first replica's count; pycomm.DataParallel follows it before each forward, and what is here in
the layouts that it is not for.
"""

from __future__ import annotations

import torch.distributed as dist
from torch import nn

from pycomm.native import load
from pycomm.replicas import backend_of


def take_the_first_replicas(part: nn.Module, group: dist.ProcessGroup) -> None:
    """Makes the buffers those of the group's first rank; collective, blocking.

    Args:
        part: Of the model, the same on all ranks of the group.
        group: The replicas' ranks that hold it.
    """
    # Asked for anew: a forward may assign a buffer instead of changing it.
    buffers = [buffer.detach() for buffer in part.buffers()]
    if buffers and group.size() > 1:
        load().broadcast_tensors(backend_of(group)[0], buffers, 0)
