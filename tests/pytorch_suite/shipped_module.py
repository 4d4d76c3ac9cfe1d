# SPDX-License-Identifier: MIT
"""PyTorch's distributed_test module, imported so that its tests run on a backend it does not know.

The module decides at import, by the name in the variable BACKEND, which tests exist for a backend.
It opens what Gloo can do to "gloo" and what MPI can do (all_to_all of CPU tensors) to "mpi". So it
is imported once under each of these names: a *gate*. The name is a gate only: before a test runs,
the module's BACKEND is the real backend's name again, and groups are made with that.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from types import ModuleType
from unittest import mock

NAME = "torch.testing._internal.distributed.distributed_test"
GATES = ("gloo", "mpi")
# Lists of backends whose profiler events the tests look at.
PROFILED = ("PROFILING_SUPPORTED_BACKENDS", "SEND_RECV_PROFILING_SUPPORTED_BACKENDS")


class GatedName(str):
    """A backend's name that also equals the gate's: one test body compares it with "gloo"."""

    gate = ""
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other) is True or other == str(self.gate)

    def __ne__(self, other: object) -> bool:
        return not self == other


@functools.cache
def _load(gate: str, backend: str, world_size: int) -> ModuleType:
    spec = importlib.util.find_spec(NAME)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    at_import = {"BACKEND": gate, "WORLD_SIZE": str(world_size), "INIT_METHOD": "file://"}
    with mock.patch.dict(os.environ, at_import):
        spec.loader.exec_module(module)
    module.BACKEND = GatedName(backend)
    module.BACKEND.gate = gate
    for name in PROFILED:
        if backend not in getattr(module, name):
            getattr(module, name).append(backend)
    return module


def load(gate: str, backend: str, world_size: int) -> ModuleType:
    """Returns the module as imported under `gate`, for tests of `backend`; each is made once."""
    module = _load(gate, backend, world_size)
    sys.modules[NAME] = module  # tests pickle classes of theirs, by this name
    return module


def test_class(module: ModuleType) -> type:
    """The class that PyTorch's own wrapper, which accepts its own backends only, would define."""
    bases = (module.TestDistBackend, module.DistributedTest._DistTestBase)
    return type("ShippedTests", bases, {})


def closed(module: ModuleType) -> dict[str, str]:
    """Every test's name to why this gate has closed it at import; "" for those that are open."""
    cls = test_class(module)
    tests = [name for name in dir(cls) if name.startswith("test_")]
    return {name: getattr(getattr(cls, name), "__unittest_skip_why__", "") for name in tests}
