# SPDX-License-Identifier: MIT
"""DDP communication hooks that send gradients in fewer bytes, with memory of what rounding lost.

    model = DistributedDataParallel(module)
    optimizer = torch.optim.AdamW(model.parameters())
    state = pycomm.compression.ErrorFeedback("int4", model, optimizer)
    model.register_comm_hook(state, pycomm.compression.hook)

Everything else in the script stays as it is. docs/compression.md says what is kept, when it is
committed, and what it costs.
"""

from pycomm.compression.feedback import ErrorFeedback
from pycomm.compression.hook import Encoded, hook

__all__ = ["Encoded", "ErrorFeedback", "hook"]
