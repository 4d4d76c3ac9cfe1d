# SPDX-License-Identifier: MIT
"""Training that talks once in many steps: local SGD and DiLoCo, around a plain model and optimizer.

    with pycomm.local_sgd.DiLoCo(model, optimizer, sync_every=50):
        for batch in batches_of_this_rank:
            optimizer.zero_grad()
            loss_of(model(batch)).backward()
            optimizer.step()                    # every 50th also joins the ranks' models

docs/local_sgd.md says what is sent, what is equal on all ranks and when, and what to keep in a
checkpoint.
"""

from pycomm.local_sgd.average import LocalSGD
from pycomm.local_sgd.diloco import DiLoCo

__all__ = ["DiLoCo", "LocalSGD"]
