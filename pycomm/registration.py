# SPDX-License-Identifier: MIT
"""Makes torch.distributed know the backend name "pycomm", without loading the extension module.

`autoload` runs at the end of every `import torch` in an environment that has pycomm (entry-point
group torch.backends); torch 2.14 and later call `register` when the name is first asked for
(torch.distributed.backends). Both may run any number of times. `autoload` also lets pycomm take
another backend's place where PYCOMM_REPLACE says so: see pycomm/replace.py; and PYCOMM_ARENA=1 puts
large CPU tensors into shared memory from here on: see pycomm/memory.py.
"""

import os
from importlib import import_module
from typing import Any

_registered = False
# Public names that need the extension module, and where they are.
_LATER = {
    "Communicator": "pycomm.communicator",
    "DataParallel": "pycomm.data_parallel",
    "Layout": "pycomm.layout",
    "init": "pycomm.train.context",
}
_MODULES_LATER = {
    "checkpoint",
    "compression",
    "data",
    "local_sgd",
    "parameter_server",
    "pipeline_parallel",
    "tensor_parallel",
    "train",
}


def register() -> None:
    """Registers the backend; local, idempotent."""
    global _registered
    if _registered:
        return
    import torch.distributed as dist

    if not dist.is_available():
        return
    backend = dist.Backend
    if "PYCOMM" not in backend._plugins:
        backend.register_backend("pycomm", _create, extended_api=True, devices=["cpu", "cuda"])
    # Before 2.14 torch looks the first plugin's upper-case name up among lower-case ones to find
    # the type of the default group and never matches; a lower-case alias in front makes
    # "cpu:pycomm,cuda:pycomm" work. Nothing else reads it.
    if _torch_version() < (2, 14) and "pycomm" not in backend._plugins:
        backend._plugins = {"pycomm": backend._plugins["PYCOMM"], **backend._plugins}
    _registered = True


def autoload() -> None:
    """Registers the backend at the end of `import torch`; never raises.

    An exception here would break `import torch` for everybody in this environment, so it becomes a
    warning, and init_process_group("pycomm") will say what is wrong.
    """
    try:
        register()
        if os.environ.get("PYCOMM_ARENA") == "1":
            from pycomm.memory import install

            install()
        if os.environ.get("PYCOMM_REPLACE"):
            from pycomm.replace import install

            install()
    except Exception as error:  # noqa: BLE001
        import warnings

        warnings.warn(f"pycomm could not register itself: {error}", stacklevel=2)


def load_later(name: str) -> Any:
    """Returns a public name that `import pycomm` does not load; local."""
    if name in _MODULES_LATER:
        return import_module(f"pycomm.{name}")
    if name not in _LATER:
        raise AttributeError(f"module 'pycomm' has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)


def _torch_version() -> tuple[int, int]:
    import torch

    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


def _create(options: Any, pg_options: Any) -> Any:
    from pycomm.backend import create

    return create(options, pg_options)
