# SPDX-License-Identifier: MIT
"""Parameter servers whose workers do not come, or that torchrun starts again. One process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from test_parameter_server import SGD, linear
from torch.distributed import HashStore, TCPStore

from pycomm import CommError, UsageError
from pycomm.parameter_server import Server, Worker, pair

PATIENCE_S = 30.0
LONG_S = 3600.0


def test_a_worker_whose_fellows_do_not_come_is_told_so() -> None:
    store = HashStore()
    missing = "fewer than workers=2, which begin together, have come after 0.3 s"
    with (
        Server(linear(), SGD, store=store, workers=2, connect_timeout_s=PATIENCE_S),
        pytest.raises(CommError, match=missing),
    ):
        Worker(linear(), store, connect_timeout_s=0.3)


def await_that(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def closes(server: Server) -> None:
    closing = threading.Thread(target=server.close, daemon=True)
    closing.start()
    closing.join(PATIENCE_S)
    assert not closing.is_alive()


def test_closing_a_server_does_not_wait_for_a_worker_that_has_died_while_it_joined() -> None:
    store = HashStore()
    server = Server(linear(), SGD, store=store, connect_timeout_s=LONG_S).start()
    meeting = pair.Meeting(store, "default", False, LONG_S)
    meeting.number()  # and never comes
    await_that(lambda: server._busy == 1)
    closes(server)
    with pytest.raises(CommError, match="server 0 has ended, the server was closed"):
        meeting.pair(1, 0, pair.WORKER, LONG_S)


def test_a_worker_that_waits_for_its_fellows_hears_that_the_server_has_ended() -> None:
    store, texts = HashStore(), []
    server = Server(linear(), SGD, store=store, workers=2, connect_timeout_s=LONG_S).start()

    def join() -> None:
        with pytest.raises(CommError) as raised:
            Worker(linear(), store, connect_timeout_s=LONG_S)
        texts.append(str(raised.value))

    joining = threading.Thread(target=join, daemon=True)
    joining.start()
    await_that(lambda: server.report()["joined"] == 1)
    closes(server)
    joining.join(PATIENCE_S)
    assert len(texts) == 1 and "server 0" in texts[0] and "the server was closed" in texts[0]


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
