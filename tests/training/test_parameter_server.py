# SPDX-License-Identifier: MIT
"""pycomm.parameter_server: servers and workers as processes, against training in one process."""

from __future__ import annotations

import functools
import random
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from ranks import Rank, run_ranks
from reference_run import add_then_divide, alone, gpt, next_byte_loss, tokens_of
from torch import Tensor, nn
from torch.distributed import HashStore
from torch.utils.checkpoint import checkpoint

from pycomm import CommError, UsageError
from pycomm.parameter_server import Server, Worker, same_as

STEPS = 5
SGD = functools.partial(torch.optim.SGD, lr=0.3, momentum=0.9)


@dataclass(frozen=True)
class Case:
    """Ranks 0 to servers - 1 are servers, the others workers."""

    servers: int = 1
    workers: int = 2
    server: dict[str, Any] = field(default_factory=dict)
    worker: dict[str, Any] = field(default_factory=dict)

    @property
    def world_size(self) -> int:
        return self.servers + self.workers

    def serve(self, me: Rank, model: nn.Module, optimizer: Any = SGD) -> dict[str, Any]:
        threads = threading.active_count()
        made = {"workers": self.workers, **self.server}
        server = Server(
            model, optimizer, store=me.store, index=me.rank, servers=self.servers, **made
        )
        report = server.serve()
        assert threading.active_count() == threads
        return report

    def join(self, me: Rank, model: nn.Module) -> Worker:
        return Worker(model, me.store, **{"rank": me.rank - self.servers, **self.worker})


def parameters(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def train_gpt(me: Rank, case: Case) -> Any:
    model = gpt()
    if me.rank < case.servers:
        return case.serve(me, model)
    nn.init.zeros_(model.norm.weight)  # the servers' values count
    threads = threading.active_count()
    with case.join(me, model) as worker:
        for number, tokens in enumerate(tokens_of(me.rank - case.servers, STEPS)):
            loss = next_byte_loss(model, tokens)
            if number % 2:
                worker.step(loss)
            else:
                loss.backward()
                worker.step()
            assert all(parameter.grad is None for parameter in model.parameters())
        assert worker.clock == STEPS
    assert threading.active_count() == threads
    return parameters(model), worker.bytes_sent, worker.bytes_received


@pytest.mark.parametrize(
    "case",
    [
        Case(1, 2),
        Case(2, 3),
        Case(3, 2, {"shards": "hash"}),
        Case(2, 2, {"mode": "ssp", "staleness": 0}),
    ],
    ids=["one server", "two servers", "hashed", "ssp 0"],
)
def test_in_sync_it_is_data_parallel_training_bit_for_bit(case: Case) -> None:
    results = run_ranks(train_gpt, case.world_size, case, init=False)
    reports, workers = results[: case.servers], results[case.servers :]
    ssp = case.server.get("mode") == "ssp"
    for report in reports:
        assert report["updates"] == STEPS * (case.workers if ssp else 1)
        assert (report["joined"], report["left"], report["died"]) == (case.workers, case.workers, 0)
        assert report["clock"] == STEPS
        assert max(report["lead"]) == 0
    model_bytes = sum(p.numel() * 4 for p in gpt().parameters())
    for state, sent, received in workers:
        assert same(state, workers[0][0])
        assert (sent, received) == (STEPS * model_bytes, (STEPS + 1) * model_bytes)
    if not ssp:  # which makes a step of each gradient
        expected = alone(
            gpt, [tokens_of(rank, STEPS) for rank in range(case.workers)], combine=add_then_divide
        )[0].state
        got = dict(zip([n for n, _ in gpt().named_parameters()], workers[0][0], strict=True))
        for name, value in got.items():
            assert torch.equal(value, expected[name]), name


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(64, 64)


def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs and what a model without error makes of them."""
    x = torch.randn(32, 64, generator=generator)
    return x, x.flip(1) + 1.0


def error_of(model: nn.Module) -> float:
    x, y = batch(torch.Generator().manual_seed(99))
    return (model(x) - y).square().mean().item()


def fit(me: Rank, case: Case, steps: int) -> Any:
    model = linear()
    if me.rank < case.servers:
        return case.serve(me, model, functools.partial(torch.optim.SGD, lr=2.0))
    generator = torch.Generator().manual_seed(me.rank)
    before = error_of(model)
    with case.join(me, model) as worker:
        for _ in range(steps):
            x, y = batch(generator)
            (model(x) - y).square().mean().backward()
            worker.step()
        worker.pull()
        report = worker.report()
    return before, error_of(model), report, worker.bytes_sent


SSP = {"mode": "ssp", "staleness": 2}


@pytest.mark.parametrize(
    "case",
    [
        Case(2, 3, {"mode": "async"}),
        Case(1, 3, SSP),
        Case(1, 2, SSP, {"overlap": True}),
        Case(1, 2, {}, {"overlap": True}),
        Case(2, 2, {}, {"wire": "int4"}),
        Case(1, 2, {"mode": "async"}, {"wire": "int8"}),
        Case(1, 2, {}, {"wire": "bf16", "error_feedback": False}),
    ],
    ids=str,
)
def test_every_mode_and_format_fits_what_one_process_fits(case: Case) -> None:
    results = run_ranks(fit, case.world_size, case, 80, init=False)
    exact = 80 * linear().weight.numel() * 4
    for before, after, reports, sent in results[case.servers :]:
        assert before > 1
        assert after < 0.02 * before
        assert len(reports) == case.servers
        wire = case.worker.get("wire", "fp32")
        ratio = {"fp32": 1, "bf16": 0.5, "int8": 0.26, "int4": 0.15}[wire]
        assert exact * ratio * 0.9 <= sent <= exact * ratio * 1.1
    for report in results[: case.servers]:
        pushes = 80 * case.workers
        assert report["updates"] == (80 if case.server.get("mode", "sync") == "sync" else pushes)
        assert sum(report["staleness"].values()) == pushes


def at_own_pace(me: Rank, case: Case, seed: int) -> Any:
    if me.rank < case.servers:
        return case.serve(me, linear())
    model = linear()
    pace = random.Random(seed + me.rank)
    leads = []
    with case.join(me, model) as worker:
        for _ in range(12):
            # One is slow, so that the others run into the bound; all are now and then.
            time.sleep(0.02 if me.rank == case.servers else pace.choice([0, 0, 0.01]))
            model(torch.ones(1, 64)).sum().backward()
            worker.step()
            leads.append(worker.lead)
    return leads


@pytest.mark.parametrize("bound", [0, 1, 3])
def test_no_worker_is_ever_given_parameters_beyond_the_bound(bound: int) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    case = Case(2, 3, {"mode": "ssp", "staleness": bound})
    results = run_ranks(at_own_pace, case.world_size, case, seed, init=False)
    for report in results[:2]:
        assert max(report["lead"]) <= bound
        assert sum(report["lead"].values()) == 3 * 13  # with the first pull
        assert report["waited_s"] > 0
    for leads in results[2:]:
        assert max(leads) <= bound


class Partly(nn.Module):
    """A parameter that nobody uses, one that one worker uses, one frozen, and half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
        self.by_one = nn.Parameter(torch.ones(2, 2).T)
        self.unused = nn.Parameter(torch.ones(4))
        self.frozen = nn.Parameter(torch.ones(5), requires_grad=False)
        self.transposed = nn.Parameter(torch.arange(6.0).view(2, 3).T)


def partly(me: Rank) -> Any:
    model = Partly()
    case = Case(1, 2)
    if me.rank == 0:
        # Weight decay would move parameters that have no gradient.
        return case.serve(me, model, functools.partial(torch.optim.SGD, lr=0.5, weight_decay=0.1))
    with case.join(me, model) as worker:
        loss = model.used.float().sum() + (model.transposed * torch.arange(6.0).view(3, 2)).sum()
        if me.rank == 1:
            loss = loss + model.by_one.sum()
        loss.backward()
        worker.step()
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_parameters_without_a_gradient_stay_and_others_keep_their_dtype_and_layout() -> None:
    _, first, second = run_ranks(partly, 3, init=False)
    for state in (first, second):
        assert torch.equal(state["unused"], torch.ones(4))
        assert torch.equal(state["frozen"], torch.ones(5))
        assert torch.equal(state["used"], torch.full((3,), 0.45, dtype=torch.bfloat16))
        # The mean of a gradient of one, and of none.
        torch.testing.assert_close(state["by_one"], torch.full((2, 2), 1 - 0.5 * (0.5 + 0.1)))
        start = torch.arange(6.0).view(2, 3).T
        expected = start - 0.5 * (torch.arange(6.0).view(3, 2) + 0.1 * start)
        torch.testing.assert_close(state["transposed"], expected)


def scheduled(me: Rank) -> Any:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    if me.rank == 0:
        halving = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
        one = functools.partial(torch.optim.SGD, lr=1.0)
        return Server(model, one, store=me.store, workers=2, scheduler=halving).serve()
    with Worker(model, me.store) as worker:
        for _ in range(3):
            (-model.weight.sum()).backward()
            worker.step()
    return model.weight.item()


def test_a_scheduler_is_stepped_once_for_each_step_of_the_workers() -> None:
    assert run_ranks(scheduled, 3, init=False)[1:] == [1.75, 1.75]


def test_it_works_within_one_process_and_leaves_no_thread() -> None:
    threads = threading.active_count()
    store, model = HashStore(), linear()
    with Server(linear(), functools.partial(torch.optim.SGD, lr=2.0), store=store) as server:
        with Worker(model, store) as worker:
            generator = torch.Generator().manual_seed(0)
            for _ in range(60):
                x, y = batch(generator)
                (model(x) - y).square().mean().backward()
                worker.step()
        assert server.wait(30)
    assert error_of(model) < 0.1
    assert threading.active_count() == threads


def like_groups(me: Rank) -> Any:
    model = gpt()
    plain = [p for p in model.parameters() if p.dim() < 2]
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    groups = [{"params": plain, "lr": 0.02}, {"params": matrices, "weight_decay": 0.3}]
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    case = Case(2, 1)
    if me.rank < 2:
        return case.serve(me, model, same_as(optimizer, model))
    with case.join(me, model) as worker:
        for tokens in tokens_of(0, 3):
            next_byte_loss(model, tokens).backward()
            worker.step()
    got = parameters(model)
    model.load_state_dict(gpt().state_dict())
    for tokens in tokens_of(0, 3):
        next_byte_loss(model, tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
    return same(got, parameters(model))


def test_servers_can_have_the_groups_of_the_programs_own_optimizer() -> None:
    assert run_ranks(like_groups, 3, init=False)[2]
    model = linear()
    with pytest.raises(UsageError, match="the optimizer does not have bias"):
        same_as(SGD([model.weight]), model)


def test_an_error_of_the_optimizer_reaches_the_workers_and_the_server() -> None:
    class Broken(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            raise ZeroDivisionError("the optimizer is broken")

    store, model = HashStore(), linear()
    server = Server(linear(), Broken, store=store).start()
    broken = pytest.raises(CommError, match="parameter server 0: .*the optimizer is broken")
    with broken, Worker(model, store) as worker:
        model(torch.ones(1, 64)).sum().backward()
        worker.step()
    with pytest.raises(ZeroDivisionError):
        server.wait(30)
    server.close()


class Recomputed(nn.Module):
    """Uses one parameter in two reentrant checkpoints, one not at all, and one at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.unused, self.last = (nn.Parameter(torch.ones(4)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = checkpoint(lambda y: (y * self.shared).exp(), x, use_reentrant=True)
        return (x * self.last).sum()


def test_gradients_in_several_parts_are_refused_when_they_are_sent_early() -> None:
    store, model = HashStore(), Recomputed()
    x = torch.full((4,), 0.1, requires_grad=True)
    refused = pytest.raises(UsageError, match="the gradient of shared came in several parts")
    with Server(Recomputed(), SGD, store=store) as server:
        with refused, Worker(model, store) as worker:
            model(x).backward()
            worker.step()
            worker.step(model.last.sum())  # where not all that a server has is used
            assert server.report()["updates"] == 2
            worker.step(model(x) + model.unused.sum())
        assert server.wait(30)


def test_wrong_arguments_say_what_is_expected() -> None:
    store, model = HashStore(), linear()
    for made, text in (
        ({"index": 2}, "index=2 of 1 servers"),
        ({"on_death": "stop"}, "on_death='stop', expected one of go_on, raise"),
        ({"checkpoint_every": 0}, "checkpoint_every=0, expected steps"),
        ({"store": "localhost"}, "got store 'localhost', expected \"tcp://HOST:PORT\""),
    ):
        with pytest.raises(UsageError, match=text):
            Server(model, SGD, **{"store": store, **made})
    with pytest.raises(UsageError, match="weight is torch.float64"):
        Server(nn.Linear(2, 2).double(), SGD, store=store)
    with pytest.raises(UsageError, match="no parameter of the model needs a gradient"):
        Worker(linear().requires_grad_(False), store)
    with pytest.raises(CommError, match="server 0 is absent after 0.2 s"):
        Worker(model, store, connect_timeout_s=0.2)
    with Server(model, SGD, store=store):
        with pytest.raises(UsageError, match="a server 0 has been on this store before"):
            Server(model, SGD, store=store)
        with pytest.raises(UsageError, match="the servers have a model with other parameters"):
            Worker(nn.Linear(3, 3), store)
        worker = Worker(model, store)
        worker.close()
        with pytest.raises(UsageError, match="it has left the servers; make a new one"):
            worker.step()
    with pytest.raises(CommError, match="server 0 has ended, .*start the servers again"):
        Worker(model, store)
