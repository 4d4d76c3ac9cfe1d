# SPDX-License-Identifier: MIT
"""Killed, cut off from power, and asked to stop while saving: always a checkpoint to go on from."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
import torch
import torch.distributed as dist
from checkpoint_runs import FailingFiles, finish, make_run, operations, seed_all, train
from ranks import Died, Rank, run_ranks

import pycomm
from pycomm.checkpoint import Checkpointer, CheckpointError

HERE = Path(__file__).parent
STEPS = 30


@contextmanager
def script(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {"PYTHONPATH": f"{HERE}:{HERE.parent}:{os.pathsep.join(sys.path)}"}
    command = [sys.executable, *map(str, arguments)]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    with process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # the lives, too


def test_killed_in_the_middle_of_200_saves_runs_end_with_the_undisturbed_losses(
    tmp_path: Path,
) -> None:
    """Two runs at the same time, each on a core."""
    seed, kills = random.randrange(10**6), 100
    with contextlib.ExitStack() as stack:
        runs = []
        for number in range(2):
            folder = tmp_path / str(number)
            folder.mkdir()
            kill = script(HERE / "checkpoint_kills.py", folder, seed + number, kills, 200)
            runs.append(stack.enter_context(kill))
        for process in runs:
            said, _ = process.communicate(timeout=300)
            print(said)
            assert process.returncode == 0
            assert said.count("killed at") == kills


# ---- power cuts


class PowerCut(BaseException):
    """No code runs after it."""


class UnsyncedFiles(FailingFiles):
    """A disk that keeps only what was synced, and of the rest what chance says, after a cut.

    Bytes of a file are safe when it is synced after they were written, a name when its folder is
    synced after it was given. That is what POSIX promises, and file systems do not promise more.
    """

    def __init__(self, at: int, seed: int) -> None:
        super().__init__(at)
        self.draw = random.Random(seed)
        self.dirty: set[Path] = set()
        self.names: list[tuple[Path, Path | None]] = []  # given since their folder was synced
        self.is_cut = False

    def fail(self, path: Path) -> None:
        self.is_cut = True
        raise PowerCut

    def make_folder(self, path: Path) -> None:
        super().make_folder(path)
        self.names.append((path, None))

    @contextmanager
    def create(self, path: Path) -> Iterator[IO[bytes]]:
        with super().create(path) as file:
            self.dirty.add(path)
            self.names.append((path, None))
            yield file

    def sync_file(self, path: Path) -> None:
        super().sync_file(path)
        self.dirty.discard(path)

    def sync_folder(self, path: Path) -> None:
        super().sync_folder(path)
        self.names = [one for one in self.names if one[0].parent != path]

    def rename(self, path: Path, target: Path) -> None:
        super().rename(path, target)
        moved = {old for old in self.dirty if path in (old, *old.parents)}
        self.dirty = self.dirty - moved | {target / old.relative_to(path) for old in moved}
        self.names = [
            (target / one.relative_to(path) if path in (one, *one.parents) else one, before)
            for one, before in self.names
        ]
        self.names.append((target, path))

    def remove(self, path: Path) -> None:
        if not self.is_cut:
            super().remove(path)

    def come_back(self) -> None:
        """Make the folder what it may be after the cut."""
        for path in self.dirty:
            size = path.stat().st_size if path.exists() else 0
            if size:
                os.truncate(path, self.draw.randrange(size))
        for path, before in reversed(self.names):
            if not path.exists() or self.draw.random() < 0.5:
                continue
            if before is not None:
                os.rename(path, before)
            elif path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def cut_power(folder: Path, template: Path, at: int, seed: int) -> tuple[int, str]:
    shutil.copytree(template, folder)
    files = UnsyncedFiles(at, seed)
    state = make_run()
    checkpointer = Checkpointer(folder, keep=2, async_=False, files=files)
    assert checkpointer.load(state) == 2
    next(train(state, 3))
    with pytest.raises((PowerCut, CheckpointError)):  # torch makes an error of its own of it
        checkpointer.save(3, state)
    assert files.is_cut
    files.come_back()
    loaded = make_run()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step = Checkpointer(folder, keep=2).load(loaded)
    assert step in (2, 3) and loaded["losses"] == state["losses"][:step]
    shutil.rmtree(folder)
    return step, " ".join(str(one.message) for one in caught)


def test_after_a_power_cut_at_any_operation_there_is_a_whole_checkpoint(tmp_path: Path) -> None:
    log = operations(tmp_path / "log")
    writes = [at for at, line in enumerate(log) if line.startswith("write")]
    points = sorted(set(range(len(log))) - set(writes[:-1]) | {writes[0], writes[500]})
    seed_all(1)
    state = make_run()
    with Checkpointer(tmp_path / "template", keep=2) as checkpointer:
        for step in train(state, 2):
            checkpointer.save(step, state)
    ends = []
    for at in points:
        for seed in range(4):
            step, said = cut_power(tmp_path / "run", tmp_path / "template", at, seed)
            print(f"power cut at operation {at}, {log[at]}, seed {seed}: loaded step {step}")
            assert "is broken" not in said, "a name was given before all under it was on the disk"
            ends.append(step)
    assert set(ends) == {2, 3}


def test_the_simulated_disk_shows_a_sync_that_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the test before would mean nothing. What is loaded is whole all the same."""
    log = operations(tmp_path / "log")
    named = next(at for at, line in enumerate(log) if line.startswith("to step-"))
    state = make_run()
    with Checkpointer(tmp_path / "template", keep=2) as checkpointer:
        for step in train(state, 2):
            checkpointer.save(step, state)
    monkeypatch.setattr(UnsyncedFiles, "sync_file", FailingFiles.sync_file)
    ends = [cut_power(tmp_path / "r", tmp_path / "template", named + 1, s) for s in range(8)]
    assert any("is broken" in said for _, said in ends)


# ---- two ranks


class KillRank(FailingFiles):
    def fail(self, path: Path) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def dies_while_saving(me: Rank, folder: str, victim: int, at: int) -> str:
    state = make_run(me.rank, me.world_size)
    files = KillRank(None)
    checkpointer = Checkpointer(folder, files=files)
    began = checkpointer.load(state) or 0
    next(train(state, began + 1))
    checkpointer.save(began + 1, state)
    checkpointer.wait()
    next(train(state, began + 2))
    files.done, files.at = 0, at if me.rank == victim else None
    checkpointer.save(began + 2, state)
    try:
        checkpointer.wait()
    except (CheckpointError, pycomm.CommError) as error:
        return str(error)
    return ""


def goes_on(me: Rank, folder: str) -> tuple[int | None, list[float]]:
    state = make_run(me.rank, me.world_size)
    with Checkpointer(folder) as checkpointer, warnings.catch_warnings():
        warnings.simplefilter("error")
        return checkpointer.load(state), state["losses"]


@pytest.mark.parametrize("victim, at", [(0, 0), (1, 30), (0, 400), (1, -1), (0, -3)])
def test_a_rank_that_dies_while_saving_leaves_a_whole_checkpoint(
    victim: int, at: int, tmp_path: Path
) -> None:
    """`at` from the end: of the victim's operations, which it is here made to count first."""
    if at < 0:
        at += run_ranks(count_operations, 2, str(tmp_path / "count"))[victim]
    folder = str(tmp_path / "run")
    results = run_ranks(dies_while_saving, 2, folder, victim, at, dies=(victim,))
    assert results[victim] == Died(-signal.SIGKILL)
    assert results[1 - victim], "the survivor was told nothing"
    for step, losses in run_ranks(goes_on, 2, folder):
        assert step in (1, 2) and len(losses) == step


def count_operations(me: Rank, folder: str) -> int:
    state = make_run(me.rank, me.world_size)
    files = FailingFiles(None)
    with Checkpointer(folder, files=files) as checkpointer:
        finish(state, 1)
        checkpointer.save(1, state)
        checkpointer.wait()
        files.done = 0
        finish(state, 2)
        checkpointer.save(2, state)
        checkpointer.wait()
    return files.done


# ---- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_training_with_a_checkpoint_and_exit_code_zero(
    number: signal.Signals, tmp_path: Path
) -> None:
    seed_all(1)
    undisturbed = finish(make_run(), STEPS)
    with script(HERE / "checkpoint_signal.py", tmp_path) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line == "step 4\n":
                process.send_signal(number)
                break
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    with Checkpointer(tmp_path) as checkpointer:
        state = make_run()
        step = checkpointer.load(state)
    assert step is not None and step >= 4 and f"step {step + 1}" not in said
    assert finish(state, STEPS) == undisturbed


def signalled(me: Rank, folder: str, victim: int) -> tuple[Any, int, list[float]]:
    seed_all(1)
    state = make_run(me.rank, me.world_size, pycomm.DataParallel)
    checkpointer = Checkpointer(folder, every=1000)
    began = checkpointer.load(state) or 0
    before = signal.getsignal(signal.SIGTERM)
    checkpointer.on_signal(signal.SIGTERM)
    code: Any = "none"
    try:
        for step in train(state, STEPS):
            if step == began + 3 and me.rank == victim:
                os.kill(os.getpid(), signal.SIGTERM)
            checkpointer.after_step(step, state)
    except SystemExit as end:
        code = end.code
    checkpointer.close()
    assert signal.getsignal(signal.SIGTERM) is before
    dist.barrier()
    return code, began, state["losses"]


def test_a_signal_to_one_rank_ends_all_after_the_same_step(tmp_path: Path) -> None:
    first = run_ranks(signalled, 2, str(tmp_path), 1)
    assert [(code, began, len(losses)) for code, began, losses in first] == [(0, 0, 3)] * 2
    second = run_ranks(signalled, 2, str(tmp_path), -1)
    undisturbed = run_ranks(signalled, 2, str(tmp_path / "other"), -1)
    assert [(code, began) for code, began, _ in second] == [("none", 3)] * 2
    for (_, _, losses), (_, _, want) in zip(second, undisturbed, strict=True):
        assert losses[3:] == want[3:]  # those before are rank 0's


def test_without_torch_distributed_and_without_a_signal_nothing_stops(tmp_path: Path) -> None:
    with Checkpointer(tmp_path, every=2) as checkpointer:
        checkpointer.on_signal(signal.SIGUSR2)
        state = make_run()
        for step in train(state, 5):
            checkpointer.after_step(step, state)
            assert not checkpointer.stop_requested()
        checkpointer.wait()
        assert checkpointer.latest() == 4
        os.kill(os.getpid(), signal.SIGUSR2)
        assert checkpointer.stop_requested()
    torch.testing.assert_close(len(state["losses"]), 5)
