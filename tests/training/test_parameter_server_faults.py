# SPDX-License-Identifier: MIT
"""Parameter servers when workers and servers die, come late, and go on from checkpoints."""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import Died, Rank, run_ranks
from reference_run import gpt, next_byte_loss, tokens_of
from test_parameter_server import SGD, Case, linear, parameters, same
from torch import nn
from torch.distributed import HashStore

from pycomm import CommError, PeerFailure, UsageError
from pycomm.parameter_server import Server, Worker, load_parameters, pair

STEPS = 12
PATIENCE_S = 30.0


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def step(model: torch.nn.Module, worker: Worker, rank: int) -> None:
    next_byte_loss(model, tokens_of(rank, worker.clock + 1)[-1]).backward()
    worker.step()


def one_dies(me: Rank, case: Case, in_mid_push: bool) -> Any:
    """The last worker is killed after four steps, perhaps while it sends its fifth gradient."""
    model = gpt()
    if me.rank < case.servers:
        return case.serve(me, model)
    leads = []
    with case.join(me, model) as worker:
        while worker.clock < STEPS:
            if me.rank == case.world_size - 1 and worker.clock == 4:
                if in_mid_push:
                    worker._links[0].tell(pair.PUSH, 0, 0)
                    worker._links[0].finish()
                die()
            step(model, worker, me.rank)
            leads.append(worker.lead)
    return parameters(model), leads


@pytest.mark.parametrize(
    ("server", "in_mid_push"),
    [
        ({"mode": "async"}, False),
        ({"mode": "async"}, True),
        ({"mode": "ssp", "staleness": 1}, True),
        ({"mode": "sync"}, False),
        ({"mode": "sync"}, True),
    ],
    ids=str,
)
def test_a_killed_worker_stops_nobody(server: dict[str, Any], in_mid_push: bool) -> None:
    case = Case(2, 3, server)
    results = run_ranks(
        one_dies, case.world_size, case, in_mid_push, init=False, dies=[case.world_size - 1]
    )
    assert isinstance(results[-1], Died)
    mode = server["mode"]
    for report in results[:2]:
        assert (report["joined"], report["left"], report["died"]) == (3, 2, 1)
        assert report["updates"] == (STEPS if mode == "sync" else 2 * STEPS + 4)
        (death,) = report["deaths"]
        assert death.startswith("worker 2 at step 4: ") and "pid" in death
        assert max(report["lead"]) <= server.get("staleness", STEPS)
    if mode == "sync":
        assert same(results[2][0], results[3][0])


def raises(me: Rank, case: Case) -> Any:
    model = gpt()
    if me.rank < case.servers:
        with pytest.raises(PeerFailure) as raised:
            case.serve(me, model)
        return str(raised.value)
    with pytest.raises(PeerFailure) as raised, case.join(me, model) as worker:
        while True:
            if me.rank == case.world_size - 1 and worker.clock == 3:
                raise PeerFailure("this worker gives up")
            step(model, worker, me.rank)
    return str(raised.value)


def test_sync_ends_everybody_if_it_shall_when_a_worker_ends() -> None:
    case = Case(1, 3, {"on_death": "raise"})
    server, *others, culprit = run_ranks(raises, 4, case, init=False)
    assert culprit == "this worker gives up"
    assert "worker 2 at step 3: " in server and "this worker gives up" in server
    for text in others:
        assert text.startswith("parameter server 0: ") and "has ended with PeerFailure" in text


def comes_late(me: Rank, case: Case) -> Any:
    model = gpt()
    if me.rank < case.servers:
        return case.serve(me, model)
    late = me.rank == case.world_size - 1
    if late:
        me.store.wait(["under way"])
    with case.join(me, model) as worker:
        entered = worker.clock
        while worker.clock < 3 * STEPS:
            if worker.clock == 5 and me.rank == case.servers:
                me.store.set("under way", "")
            if worker.clock == 10 and not late:
                # Whoever is here waits until the late one is, else it might come too late.
                deadline = time.monotonic() + PATIENCE_S
                while worker.report()[0]["joined"] < 3 and time.monotonic() < deadline:
                    time.sleep(0.01)
            step(model, worker, me.rank)
        return entered, parameters(model)


@pytest.mark.parametrize(
    "server", [{"mode": "sync"}, {"mode": "async"}, {"mode": "ssp", "staleness": 2}], ids=str
)
def test_a_worker_that_comes_late_begins_where_the_others_are(server: dict[str, Any]) -> None:
    case = Case(2, 3, {"workers": 2, **server})
    results = run_ranks(comes_late, case.world_size, case, init=False)
    entered = [entered for entered, _ in results[2:]]
    assert entered[:2] == [0, 0]
    # Where the slowest of the others is, which in async may be anywhere.
    low, high = {"sync": (5, 11), "ssp": (3, 13), "async": (0, 3 * STEPS)}[server["mode"]]
    assert low <= entered[2] <= high
    for report in results[:2]:
        assert (report["joined"], report["left"]) == (3, 3)
        assert max(report["lead"]) <= server.get("staleness", 3 * STEPS)
        pushes = 9 * STEPS - entered[2]
        assert report["updates"] == (3 * STEPS if server["mode"] == "sync" else pushes)
        assert sum(report["staleness"].values()) == pushes
    if server["mode"] == "sync":
        assert same(results[2][1], results[4][1])


def a_server_dies(me: Rank, case: Case, folder: str, at: int) -> Any:
    """Server 1 is killed when all workers have made `at` steps."""
    model = gpt()
    made = {"checkpoint": folder, "checkpoint_every": 2, **case.server}
    if me.rank == 1:
        server = Server(
            model, SGD, store=me.store, index=1, servers=2, workers=case.workers, **made
        )
        with server:
            while server.report()["clock"] < at:
                assert not server.wait(0.001)
            server._saver.wait()
            die()
    if me.rank == 0:
        return Case(2, case.workers, made).serve(me, model)
    with pytest.raises(PeerFailure) as raised, case.join(me, model) as worker:
        while True:
            step(model, worker, me.rank)
    return str(raised.value), raised.value.ranks


def goes_on(me: Rank, case: Case) -> Any:
    model = gpt()
    if me.rank < case.servers:
        return case.serve(me, model)
    with case.join(me, model) as worker:
        entered = worker.clock
        while worker.clock < STEPS:
            step(model, worker, me.rank)
    return entered, parameters(model)


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_killed_server_is_named_and_training_goes_on_from_its_checkpoint(mode, tmp_path) -> None:
    case = Case(2, 2, {"mode": mode})
    results = run_ranks(a_server_dies, 4, case, str(tmp_path), 5, init=False, dies=[1])
    for text, ranks in results[2:]:
        assert text.startswith("parameter server 1: ")
        assert "pid" in text and "from their checkpoints" in text
        assert ranks == (1,)
    assert results[0]["died"] == 2  # its workers have left it in a hurry
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names and not [name for name in names if name.endswith(".half")]

    again = Case(2, 2, {**case.server, "checkpoint": str(tmp_path), "checkpoint_every": 2})
    results = run_ranks(goes_on, 4, again, init=False)
    entered = results[2][0]
    assert entered == results[3][0] and entered % 2 == 0 and 2 <= entered <= STEPS
    whole = load_parameters(tmp_path)
    assert list(whole) == [name for name, _ in gpt().named_parameters()]
    if mode == "sync":
        undisturbed = run_ranks(goes_on, 4, case, init=False)[2][1]
        assert same(results[2][1], undisturbed)
        assert same(list(whole.values()), undisturbed)


def test_checkpoints_are_whole_or_absent_and_only_whole_sets_are_taken(tmp_path: Path) -> None:
    def train(steps: int, folder: Path) -> int:
        store, model = HashStore(), gpt()
        made = {"checkpoint": folder, "checkpoint_every": 1}
        with Server(gpt(), SGD, store=store, **made), Worker(model, store) as worker:
            entered = worker.clock
            for _ in range(steps):
                step(model, worker, 0)
            worker.pull()
        return entered

    assert train(3, tmp_path) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "server0of1-00000002.pt",
        "server0of1-00000003.pt",
    ]
    (tmp_path / "server0of1-00000009.half").write_bytes(b"cut off")
    (tmp_path / "server1of2-00000007.pt").write_bytes(b"of other servers")
    assert train(1, tmp_path) == 3
    with pytest.raises(UsageError, match=r"at clock 7; whole ones are at \[3, 4\]"):
        load_parameters(tmp_path, 7)


def saved_by(model: nn.Module, folder: Path, steps: int) -> None:
    """Trains a model on a server that saves each step."""
    store = HashStore()
    with (
        Server(model, SGD, store=store, checkpoint=folder, checkpoint_every=1),
        Worker(model, store) as worker,
    ):
        for _ in range(steps):
            model(torch.ones(1, 4)).sum().backward()
            worker.step()


def bottleneck(first: int, second: int) -> nn.Module:
    """Two layers without biases; 4 to 4 by 8, or 8 to 8 by 4, have as many parameters."""
    return nn.Sequential(nn.Linear(first, second, bias=False), nn.Linear(second, first, bias=False))


def test_a_checkpoint_of_another_model_or_number_of_servers_is_refused(tmp_path: Path) -> None:
    saved_by(bottleneck(4, 8), tmp_path, 2)
    there = sorted(tmp_path.iterdir())
    with pytest.raises(UsageError, match="give the model and shards= that it was saved with"):
        Server(bottleneck(8, 4), SGD, store=HashStore(), checkpoint=tmp_path)
    with pytest.raises(UsageError, match="has checkpoints of 1 servers, here are servers=2"):
        Server(bottleneck(4, 8), SGD, store=HashStore(), servers=2, checkpoint=tmp_path)
    assert sorted(tmp_path.iterdir()) == there


def test_servers_without_a_checkpoint_in_common_remove_none(tmp_path: Path) -> None:
    for clock in (5, 10):
        (tmp_path / f"server0of2-{clock:08d}.pt").write_bytes(b"")
    store, texts = HashStore(), []

    def make(index: int) -> None:
        with pytest.raises(UsageError) as raised:
            Server(linear(), SGD, store=store, index=index, servers=2, checkpoint=tmp_path)
        texts.append(str(raised.value))

    threads = [threading.Thread(target=make, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(texts) == 2 and all("by server: {0: [5, 10], 1: []}" in text for text in texts)
    assert len(list(tmp_path.iterdir())) == 2


class Refusing(torch.optim.SGD):
    """An optimizer that takes no gradient that is not finite."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            if not all(torch.isfinite(p.grad).all() for p in group["params"]):
                raise ValueError("a gradient is not finite")
        return super().step(closure)


def test_an_optimizers_error_in_a_step_that_a_death_completes_ends_all() -> None:
    store, raised = HashStore(), []
    server = Server(
        nn.Linear(2, 2), functools.partial(Refusing, lr=0.1), store=store, workers=2
    ).start()
    workers: list[Worker] = []

    def join() -> None:
        workers.append(Worker(nn.Linear(2, 2), store, timeout_s=PATIENCE_S))

    def step_badly() -> None:
        for parameter in workers[0]._named.values():
            parameter.grad = torch.full_like(parameter, torch.nan)
        with pytest.raises(CommError, match="ValueError: a gradient is not finite") as error:
            workers[0].step()
        raised.append(error)

    joining = [threading.Thread(target=join) for _ in range(2)]
    for thread in joining:
        thread.start()
    for thread in joining:
        thread.join()
    stepping = threading.Thread(target=step_badly)
    stepping.start()
    while not server._shard._pushed:
        time.sleep(0.01)
    workers[1]._abandon("as if it had died")
    stepping.join()
    assert raised
    with pytest.raises(ValueError, match="a gradient is not finite"):
        server.wait(PATIENCE_S)
    server.close()


def test_a_full_disk_keeps_nobody_from_training_and_the_last_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store, model = HashStore(), gpt()
    with (
        Server(gpt(), SGD, store=store, checkpoint=tmp_path, checkpoint_every=2) as server,
        Worker(model, store) as worker,
    ):
        for _ in range(2):
            step(model, worker, 0)
        server._saver.wait()

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(torch, "save", full)
        for _ in range(3):
            step(model, worker, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["server0of1-00000002.pt"]
    assert "a checkpoint could not be written: [Errno 28] No space left on device" in caplog.text


def alone(me: Rank) -> Any:
    """A server whose only worker is killed before it has said who it is."""
    if me.rank == 0:
        server = Server(gpt(), SGD, store=me.store, connect_timeout_s=0.5)
        with server:
            me.store.set("there", "")
            assert not server.wait(2)
            return server.report()
    me.store.wait(["there"])
    os.environ["PYCOMM_LOG"] = "error"
    meeting = pair.Meeting(me.store, "default", False, 5.0)
    meeting.number()
    die()
    return None


def test_a_worker_that_dies_while_it_joins_is_forgotten() -> None:
    report, _ = run_ranks(alone, 2, init=False, dies=[1])
    assert (report["joined"], report["died"], report["live"]) == (0, 0, 0)


def optimizer_state(me: Rank, folder: str) -> Any:
    model = gpt()
    case = Case(1, 1, {"checkpoint": folder, "checkpoint_every": 5})
    if me.rank == 0:
        return case.serve(me, model, functools.partial(torch.optim.AdamW, lr=0.01))
    with case.join(me, model) as worker:
        for _ in range(5):
            step(model, worker, 1)
        return parameters(model)


def test_an_optimizer_goes_on_with_its_own_state(tmp_path: Path) -> None:
    run_ranks(optimizer_state, 2, str(tmp_path), init=False)
    resumed = run_ranks(optimizer_state, 2, str(tmp_path), init=False)[1]
    model = gpt()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for number in range(10):
        optimizer.zero_grad()
        next_byte_loss(model, tokens_of(1, number + 1)[-1]).backward()
        optimizer.step()
    assert same(resumed, parameters(model))
