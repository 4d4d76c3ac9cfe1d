# SPDX-License-Identifier: MIT
"""Makes the backend object that torch.distributed asks for, and closes it when the process ends."""

import atexit
import os
import sys
from types import TracebackType
from typing import Any

from pycomm.errors import UsageError
from pycomm.memory import install
from pycomm.native import load
from pycomm.options import Options

_exit_reason = "its process exited without destroy_process_group()"
# A notice to the peers has room for 479 bytes, and says more than this text.
_REASON_BYTES = 240


def create(options: Any, pg_options: Any) -> Any:
    """Connects this rank to its group; collective, blocking.

    Args:
        options: torch's DistributedBackendOptions.
        pg_options: None, or pycomm.Options.

    Returns:
        The C++ backend.

    Raises:
        UsageError: pg_options or an environment variable is not understood.
        CommError: a rank did not come or cannot be reached.
    """
    if pg_options is not None and not isinstance(pg_options, Options):
        pg_options = _from_backend_options(pg_options)
    values = (pg_options or Options()).resolved()
    timeout_s = options.timeout.total_seconds()
    return connect(
        options.store,
        options.group_rank,
        options.group_size,
        {"timeout_s": timeout_s, **values},
        options.group_id,
    )


def connect(store: Any, rank: int, world_size: int, values: dict[str, Any], name: str) -> Any:
    """Connects this rank to its group; collective, blocking.

    Args:
        store: A torch store that all ranks of the group share, and nobody else.
        rank: This rank in the group.
        world_size: How many ranks there are.
        values: Settings, from Options.resolved(), timeout_s among them.
        name: The group's, for the flight recorder.

    Returns:
        The C++ backend.

    Raises:
        UsageError: a setting is not understood.
        CommError: a rank did not come or cannot be reached.
    """
    module = load()
    if os.environ.get("PYCOMM_ARENA") == "1":
        install()
    native = module.BackendOptions()
    # Who may wait that long for an operation may wait as long for a rank that starts late.
    _fill(native, {"connect_timeout_s": values["timeout_s"], **values})
    native.group_name = name
    native.store_host = _store_host(store)
    backend = module.Backend(store, rank, world_size, native)
    _watch_exit()
    return backend


def shortened(reason: str) -> str:
    """As much of a reason as a notice to the peers has room for."""
    return reason.encode(errors="replace")[:_REASON_BYTES].decode(errors="ignore")


def _fill(native: Any, values: dict[str, Any]) -> None:
    for name, value in values.items():
        if name == "algorithm":
            native.set_algorithms(value)
        elif name == "wire":
            native.set_wire(value)
        elif name == "transport":
            native.transports = value
        elif name.endswith("_s"):
            setattr(native, name[:-2] + "_ms", int(value * 1000))
        else:
            setattr(native, name, value)


def _from_backend_options(given: Any) -> Options:
    """Accepts what torch hands on by itself, such as another group's options; refuses the rest."""
    if type(given).__name__ == "BackendOptions" or hasattr(given, "backend"):
        return Options()
    raise UsageError(
        f"pg_options is a {type(given).__name__}, expected pycomm.Options or None; "
        "write pg_options=pycomm.Options(...)"
    )


def _store_host(store: Any) -> str:
    """The host of the TCPStore under any prefixes: tcp uses the interface that reaches it."""
    while hasattr(store, "underlying_store"):
        store = store.underlying_store
    return str(getattr(store, "host", "") or os.environ.get("MASTER_ADDR", ""))


_watching = False


def _watch_exit() -> None:
    """Tells peers why this process ends: the exception that nobody caught, or a plain exit."""
    global _watching
    if _watching:
        return
    _watching = True
    atexit.register(_close_all)
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        global _exit_reason
        _exit_reason = shortened(f"its process ended with {kind.__name__}: {error}")
        previous(kind, error, trace)

    sys.excepthook = hook


def _close_all() -> None:
    load().close_all(_exit_reason)
