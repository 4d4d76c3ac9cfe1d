# SPDX-License-Identifier: MIT
"""Training through parameter servers: workers push gradients and pull parameters.

    from pycomm.parameter_server import Server, Worker

    if role == "server":
        sgd = functools.partial(torch.optim.SGD, lr=0.1)
        Server(build(), sgd, store=store, mode="async").serve()
    else:
        model = build()
        with Worker(model, store=store) as worker:
            for batch in batches_of_this_worker:
                loss_of(model(batch)).backward()
                worker.step()                      # pushes gradients, pulls parameters

docs/parameter_server.md says what the modes promise, who may die, and what a checkpoint has.
"""

from pycomm.parameter_server.checkpoint import load_parameters
from pycomm.parameter_server.optimizers import same_as
from pycomm.parameter_server.server import Server
from pycomm.parameter_server.worker import Worker

__all__ = ["Server", "Worker", "load_parameters", "same_as"]
