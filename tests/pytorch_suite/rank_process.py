# SPDX-License-Identifier: MIT
"""What one rank does for one test of the shipped suite; ranks.py keeps the process for the next."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import unittest
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import shipped_module
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

GROUP_MAKER = "_new_process_group_helper"
LOG_LINES = 20


class Failed(AssertionError):
    """A shipped test failed; the first line says how."""


@dataclass(frozen=True)
class Job:
    """What all ranks are told about a test.

    Attributes:
        test: Its name.
        gate: Name under which the shipped module is imported.
        backend: Name of the backend.
        scratch: A new folder of this test alone.
        may_fail: Regular expression of an error after which the process goes on; "" for none.
        pretend: A module, and what its get_backend is to say instead of the truth; or None.
    """

    test: str
    gate: str
    backend: str
    scratch: str
    may_fail: str = ""
    pretend: tuple[str, str] | None = None


@dataclass
class Account:
    """How a test went on one rank.

    Attributes:
        skipped: The reason, or "".
        failed: The first line of an error that it may have, or "".
        groups: How many process groups it made, by the name that the backend itself gives.
    """

    skipped: str = ""
    failed: str = ""
    groups: dict[str, int] = field(default_factory=dict)


def closed_tests(me: Any, backend: str, world_size: int) -> dict[str, dict[str, str]]:
    """Gate to test to why the gate has closed it, "" if it is open."""
    gates = shipped_module.GATES
    return {g: shipped_module.closed(shipped_module.load(g, backend, world_size)) for g in gates}


def run_test(me: Any, job: Job) -> Account:
    """Runs one test on a fresh default group.

    Raises:
        Failed: It failed on this rank, and may not.
    """
    module = shipped_module.load(job.gate, job.backend, me.world_size)
    module.INIT_METHOD = f"file://{job.scratch}/init_dir/shared_init_file"
    module.Barrier.barrier_id = 0
    dist.set_debug_level_from_env()  # tests change it and leave it changed
    account = Account()
    case = shipped_module.test_class(module)(job.test)
    case.rank = me.rank
    case.file_name = str(Path(job.scratch) / "default_group")
    log = Path(job.scratch) / f"rank{me.rank}.log"
    try:
        with _output_to(log), counting_groups(account.groups), _pretending(job):
            _make_default_group(case, module, job)
            _meet(me, "made")
            account.skipped, account.failed = _call(case, job, module.TEST_SKIPS)
            _meet(me, "done")
        others = set(account.groups) - {job.backend}
        assert not others, f"it made groups on {others}"
        if dist.is_initialized():
            dist.destroy_process_group()
    except Exception as error:
        tail = log.read_text(errors="replace").strip().split("\n")[-LOG_LINES:]
        raise Failed("\n".join([_line(error), "Its output ended with:", *tail])) from error
    return account


def _make_default_group(case: Any, module: Any, job: Job) -> None:
    """As TestDistBackend._run does it; and the backend is asked who it is."""
    timeout_s = module.CUSTOM_PG_TIMEOUT.get(job.test, module.default_pg_timeout)
    dist.init_process_group(
        job.backend,
        init_method=case.init_method,
        world_size=int(case.world_size),
        rank=case.rank,
        timeout=timedelta(seconds=timeout_s),
    )
    name = dist.group.WORLD._get_backend(torch.device("cpu")).name()
    assert name == job.backend, f"the default group runs on {name}"


def _call(case: Any, job: Job, skips: dict[str, Any]) -> tuple[str, str]:
    """Runs the test; returns why it was skipped and how it failed, if it may; or ""."""
    from torch.testing._internal.common_utils import set_rng_seed

    set_rng_seed()
    try:
        getattr(case, job.test)()
    except unittest.SkipTest as skip:
        return str(skip), ""
    except SystemExit as end:
        reasons = {skip.exit_code: skip.message for skip in skips.values()}
        if end.code not in reasons:
            raise Failed(f"it ended its process with {end.code}") from end
        return reasons[end.code], ""
    except Exception as error:
        if not job.may_fail or not re.search(job.may_fail, _line(error)):
            raise
        return "", _line(error)
    finally:
        case.doCleanups()
    return "", ""


def _line(error: BaseException) -> str:
    """Kind and first line of an error."""
    first = str(error).strip().split("\n")[0]
    return first if isinstance(error, Failed) else f"{type(error).__name__}: {first}"


def _meet(me: Any, where: str) -> None:
    """All ranks of this test; without a group, as a test may destroy the default one."""
    if me.store.add(where, 1) == me.world_size:
        me.store.set(f"{where}/all", "")
    me.store.wait([f"{where}/all"])


@contextlib.contextmanager
def _output_to(log: Path) -> Iterator[None]:
    """Keeps what C++ and Python print; the profiler alone prints two lines for each use."""
    kept = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}
    with log.open("w") as file:
        try:
            for descriptor in kept:
                os.dup2(file.fileno(), descriptor)
            yield
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            for descriptor, copy in kept.items():
                os.dup2(copy, descriptor)
                os.close(copy)


@contextlib.contextmanager
def counting_groups(groups: dict[str, int]) -> Iterator[None]:
    """Counts in `groups` what torch makes, whoever asks for it and by whatever name."""
    make = getattr(distributed_c10d, GROUP_MAKER)

    def counting(*args: Any, **kwargs: Any) -> Any:
        made = make(*args, **kwargs)
        if isinstance(made[0], dist.ProcessGroup):
            backend = made[0]._get_backend(torch.device("cpu"))
            backend = getattr(backend, "wrapped_pg", backend)  # TORCH_DISTRIBUTED_DEBUG=DETAIL
            groups[backend.name()] = groups.get(backend.name(), 0) + 1
        return made

    with mock.patch.object(distributed_c10d, GROUP_MAKER, counting):
        yield


def _pretending(job: Job) -> AbstractContextManager[Any]:
    if not job.pretend:
        return contextlib.nullcontext()
    module, name = job.pretend
    return mock.patch(f"{module}.get_backend", lambda group=None: name)
