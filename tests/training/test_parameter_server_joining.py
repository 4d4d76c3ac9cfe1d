# SPDX-License-Identifier: MIT
"""Parameter servers whose workers do not come, or that torchrun starts again. One process."""

from __future__ import annotations

import pytest
from test_parameter_server import SGD, linear
from torch.distributed import HashStore, TCPStore

from pycomm import CommError, UsageError
from pycomm.parameter_server import Server, Worker

PATIENCE_S = 30.0


def test_a_worker_whose_fellows_do_not_come_is_told_so() -> None:
    store = HashStore()
    missing = "fewer than workers=2, which begin together, have come after 0.3 s"
    with (
        Server(linear(), SGD, store=store, workers=2, connect_timeout_s=PATIENCE_S),
        pytest.raises(CommError, match=missing),
    ):
        Worker(linear(), store, connect_timeout_s=0.3)


def test_servers_that_torchrun_starts_again_meet_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for name, value in (
        ("MASTER_ADDR", "127.0.0.1"),
        ("MASTER_PORT", str(agent.port)),
        ("TORCHELASTIC_USE_AGENT_STORE", "True"),
    ):
        monkeypatch.setenv(name, value)
    for attempt in range(2):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(attempt))
        with Server(linear(), SGD), Worker(linear()) as worker:
            assert worker.clock == 0
    with pytest.raises(UsageError, match="has been on this store before"):
        Server(linear(), SGD)
