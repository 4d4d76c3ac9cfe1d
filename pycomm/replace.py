# SPDX-License-Identifier: MIT
"""Lets groups that a program asks another backend for run on pycomm, without editing the program.

`PYCOMM_REPLACE=gloo` (set by `python -m pycomm run --replace gloo`, or by hand) puts a function in
front of the one place where torch.distributed makes groups. Being an environment variable, it holds
in child processes too: `import torch` loads `pycomm.registration.autoload`, which calls `install`.

Only the making of groups is touched. torch's stores, torchrun's rendezvous, RPC, the helper group
of TORCH_DISTRIBUTED_DEBUG=DETAIL and code that constructs ProcessGroupGloo stay as they are.
"""

import atexit
import functools
import inspect
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from pycomm.errors import UsageError

# torch's own backends, and one that CPU programs name and another package registers.
REPLACEABLE = ("gloo", "nccl", "mpi", "ucc", "xccl", "ccl")
PYCOMM = "pycomm"
_UNNAMED = "undefined"  # torch's word for init_process_group() without a name


def parse_names(given_as: str, value: str) -> tuple[str, ...]:
    """Returns the backend names in a comma-separated list.

    Args:
        given_as: The option or variable, for the error.
        value: Such as "gloo" or "gloo,nccl"; case does not matter.

    Raises:
        UsageError: a name is not one of REPLACEABLE.
    """
    names = tuple(name.strip().lower() for name in value.split(","))
    for name in names:
        if name == PYCOMM:
            raise UsageError(
                f"{given_as}={value!r}: pycomm takes the place of others, it cannot be replaced; "
                f"name the backend that the program asks for: {', '.join(REPLACEABLE)}"
            )
        if name not in REPLACEABLE:
            raise UsageError(
                f"{given_as}={value!r}: {name!r} is no backend that can be replaced; "
                f"expected a comma-separated list of {', '.join(REPLACEABLE)}"
            )
    return names


def rewritten(backend: str, names: tuple[str, ...], default: str) -> str:
    """Returns what to ask torch for instead of `backend`.

    Args:
        backend: As given to init_process_group or new_group: a name, "undefined", or a map from
            devices to names such as "cpu:gloo,cuda:nccl", of which only the named part changes.
        names: The backends to replace.
        default: The backend that torch would choose where none is named.
    """
    backend = backend.lower()
    if ":" in backend:
        pairs = [pair.partition(":") for pair in backend.split(",")]
        return ",".join(
            f"{device}:{PYCOMM if name.strip() in names else name}" for device, _, name in pairs
        )
    if (default if backend == _UNNAMED else backend) in names:
        return PYCOMM
    return backend


def install() -> None:
    """Puts the replacement in place; local, idempotent. PYCOMM_REPLACE is read at each call.

    Raises:
        RuntimeError: this torch makes its groups in a way that pycomm does not know.
    """
    from torch.distributed import distributed_c10d as c10d

    make = getattr(c10d, "_new_process_group_helper", None)
    if make is None or not {"backend", "store", "group_rank", "group_size"} <= set(
        inspect.signature(make).parameters
    ):
        import torch

        raise RuntimeError(f"pycomm cannot replace backends in torch {torch.__version__}")
    if not hasattr(make, "_pycomm_replaces"):
        c10d._new_process_group_helper = _replacing(c10d, make)


def _replacing(c10d: Any, make: Callable[..., Any]) -> Callable[..., Any]:
    """Returns _new_process_group_helper with the names rewritten."""
    signature = inspect.signature(make)

    @functools.wraps(make)
    def replacing(*args: Any, **kwargs: Any) -> Any:
        names, keep_name = _settings(os.environ)
        call = signature.bind(*args, **kwargs)
        given = str(call.arguments["backend"])
        default = _default_backend(c10d)
        wanted = rewritten(given, names, default)
        if wanted == given.lower():
            if names and PYCOMM not in wanted:
                _reports.leave(_call_text(c10d, given), _rank(c10d, call.arguments), names)
            return make(*args, **kwargs)
        if call.arguments["group_rank"] == -1 and given == "mpi":
            _join_without_mpi(c10d, call.arguments)
        call.arguments["backend"] = c10d.Backend(wanted)
        shown = given if keep_name else wanted
        _reports.replace(_call_text(c10d, given), _rank(c10d, call.arguments), shown)
        group, store = make(*call.args, **call.kwargs)
        if keep_name and group in c10d._world.pg_map:
            # What get_backend() and get_backend_config() answer; the group itself is pycomm's.
            name = default if given == _UNNAMED else given
            config = c10d._world.pg_backend_config[group].replace(f":{PYCOMM}", f":{name}")
            c10d._world.pg_map[group] = (given, store)
            c10d._world.pg_backend_config[group] = given if ":" in given else config
        return group, store

    replacing._pycomm_replaces = True  # type: ignore[attr-defined]
    return replacing


def _settings(environment: Mapping[str, str]) -> tuple[tuple[str, ...], bool]:
    """PYCOMM_REPLACE and PYCOMM_KEEP_NAME."""
    from pycomm.options import VARIABLES

    names = environment.get("PYCOMM_REPLACE", "")
    keep_name = environment.get("PYCOMM_KEEP_NAME", "1")
    return (
        VARIABLES["PYCOMM_REPLACE"][1]("PYCOMM_REPLACE", names) if names else (),
        VARIABLES["PYCOMM_KEEP_NAME"][1]("PYCOMM_KEEP_NAME", keep_name),
    )


def _default_backend(c10d: Any) -> str:
    """What init_process_group() without a name takes: the accelerator's, or the processor's."""
    import torch

    device = torch._C._get_accelerator().type
    return str(c10d.Backend.default_device_backend_map.get(device, _UNNAMED))


def _call_text(c10d: Any, given: str) -> str:
    """The call as the program would write it."""
    if c10d.is_initialized():
        return "new_group()" if given == _UNNAMED else f'new_group(backend="{given}")'
    return "init_process_group()" if given == _UNNAMED else f'init_process_group("{given}")'


def _rank(c10d: Any, arguments: Mapping[str, Any]) -> int:
    """This process's rank among all, which is the default group's where that is being made."""
    return int(c10d.get_rank() if c10d.is_initialized() else arguments["group_rank"])


# The variables in which launchers of MPI programs tell a process its rank and how many there are.
_LAUNCHERS = (("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), ("PMI_RANK", "PMI_SIZE"))


def _join_without_mpi(c10d: Any, arguments: dict[str, Any]) -> None:
    """Gives an "mpi" default group what MPI would know: rank, size and a store.

    Raises:
        ValueError: MASTER_ADDR, MASTER_PORT, RANK or WORLD_SIZE is missing.
    """
    from torch.distributed.rendezvous import rendezvous

    for rank, size in _LAUNCHERS:
        if rank in os.environ and size in os.environ:
            os.environ.setdefault("RANK", os.environ[rank])
            os.environ.setdefault("WORLD_SIZE", os.environ[size])
    timeout = arguments.get("timeout") or timedelta(minutes=30)
    store, arguments["group_rank"], arguments["group_size"] = next(
        rendezvous("env://", timeout=timeout)
    )
    store.set_timeout(timeout)
    arguments["store"] = c10d.PrefixStore("default_pg", store)


class _Reports:
    """Tells on rank 0 what was replaced: each kind of call once, and how often at the end."""

    def __init__(self) -> None:
        self._times: Counter[str] = Counter()
        self._left: set[str] = set()

    def replace(self, call: str, rank: int, shown: str) -> None:
        """Notes that `call` makes a pycomm group."""
        if rank != 0:
            return
        if not self._times:
            atexit.register(self._sum_up)
        self._times[call] += 1
        if self._times[call] == 1:
            _say(f'{call} runs on pycomm; get_backend() answers "{shown}"')

    def leave(self, call: str, rank: int, names: tuple[str, ...]) -> None:
        """Notes that `call` names a backend that stays as it is."""
        if rank == 0 and call not in self._left:
            self._left.add(call)
            _say(f"{call} stays as it is; to be replaced: {', '.join(names)}")

    def _sum_up(self) -> None:
        again = {call: times for call, times in self._times.items() if times > 1}
        if again:
            counts = ", ".join(f"{call} {times} times" for call, times in again.items())
            _say(f"in all {counts}")


_reports = _Reports()


def _say(text: str) -> None:
    # One write: the ranks share a pipe.
    sys.stderr.write(f"pycomm run: {text}\n")
    sys.stderr.flush()
