# SPDX-License-Identifier: MIT
"""Checkpoints of one process: complete, verified, kept in number, unharmed by errors."""

from __future__ import annotations

import copy
import errno
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_runs import FailingFiles, finish, make_run, operations, seed_all, train
from torch import nn

from pycomm import UsageError
from pycomm.checkpoint import Checkpointer, CheckpointError, PerRank

STEPS = 30


def undisturbed() -> list[float]:
    seed_all(1)
    return finish(make_run(), STEPS)


def saved(folder: Path, *steps: int, **how: Any) -> dict[str, Any]:
    """A run of max(steps) steps that has saved after each of them."""
    seed_all(1)
    state = make_run()
    with Checkpointer(folder, **how) as checkpointer:
        for step in train(state, max(steps)):
            if step in steps:
                checkpointer.save(step, state)
    return state


def resumed(folder: Path) -> list[float]:
    """The losses of a run that goes on from the newest checkpoint, if there is one."""
    seed_all(99)
    state = make_run()
    with Checkpointer(folder) as checkpointer:
        if checkpointer.load(state) is None:
            seed_all(1)
    return finish(state, STEPS)


@pytest.mark.parametrize("step", [1, 7, 9, 10, 29])
@pytest.mark.parametrize("how", [{}, {"async_": False}], ids=["async", "sync"])
def test_a_resumed_run_has_the_losses_of_the_undisturbed_one_bit_for_bit(
    step: int, how: dict[str, Any], tmp_path: Path
) -> None:
    saved(tmp_path, step, **how)
    assert resumed(tmp_path) == undisturbed()


def test_training_that_goes_on_does_not_change_what_an_asynchronous_save_writes(
    tmp_path: Path,
) -> None:
    class Slow(FailingFiles):
        """Holds the writer until training has gone on."""

        def make_folder(self, path: Path) -> None:
            gone_on.wait(30)
            super().make_folder(path)

    import threading

    gone_on = threading.Event()
    state = make_run()
    with Checkpointer(tmp_path, files=Slow(None)) as checkpointer:
        steps = train(state, 12)
        for _ in range(5):
            next(steps)
        expected = copy.deepcopy(state["model"].state_dict())
        losses = list(state["losses"])
        checkpointer.save(5, state)
        list(steps)
        assert checkpointer.latest() is None
        gone_on.set()
        checkpointer.wait()
        assert not torch.equal(expected["0.weight"], state["model"].state_dict()["0.weight"])
        loaded = make_run()
        assert checkpointer.load(loaded) == 5
    assert loaded["losses"] == losses
    torch.testing.assert_close(loaded["model"].state_dict(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("keep", [1, 2])
def test_a_broken_or_abandoned_later_checkpoint_takes_no_place(tmp_path: Path, keep: int) -> None:
    state = saved(tmp_path, 2, 9)
    with Checkpointer(tmp_path, keep=keep, async_=False) as checkpointer:
        checkpointer.load(state, 2)
        for step in (3, 4, 5):
            checkpointer.save(step, state)
    kept = [*(f"step-{step:08d}.1" for step in (3, 4, 5)[-keep:]), "step-00000009"]
    assert sorted(path.name for path in tmp_path.iterdir()) == kept


def test_the_newest_are_kept_and_any_of_them_can_be_loaded(tmp_path: Path) -> None:
    saved(tmp_path, 2, 4, 6, 8, keep=3)
    assert sorted(os.listdir(tmp_path)) == [f"step-{step:08d}" for step in (4, 6, 8)]
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.latest() == 8
        state = make_run()
        assert checkpointer.load(state, step=4) == 4 and len(state["losses"]) == 4
        with pytest.raises(CheckpointError, match="no checkpoint of step 2.* of steps: 8, 6, 4"):
            checkpointer.load(state, step=2)


def test_a_step_that_is_saved_again_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    saved(tmp_path, 3)
    saved(tmp_path, 3)
    assert sorted(os.listdir(tmp_path)) == ["step-00000003", "step-00000003.1"]
    (tmp_path / "step-00000003" / "manifest.json").unlink()
    assert Checkpointer(tmp_path).load(make_run()) == 3


# ---- broken ones


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip, cut, empty, Path.unlink], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "manifest.json"])
def test_a_broken_checkpoint_is_named_and_the_one_before_is_loaded(
    name: str, damage: Any, tmp_path: Path
) -> None:
    saved(tmp_path, 5, 10)
    damage(tmp_path / "step-00000010" / name)
    state = make_run()
    with (
        Checkpointer(tmp_path) as checkpointer,
        pytest.warns(UserWarning, match=rf"step-00000010/{name}: it|step-00000010/{name}: "),
    ):
        assert checkpointer.load(state) == 5
    assert finish(state, STEPS) == undisturbed()


def test_when_all_are_broken_nothing_begins_anew_by_itself(tmp_path: Path) -> None:
    saved(tmp_path, 5, 10)
    for path in tmp_path.iterdir():
        flip(path / "__0_0.distcp")
    state = make_run()
    with (
        Checkpointer(tmp_path) as checkpointer,
        pytest.warns(UserWarning, match="checksum"),
        pytest.raises(CheckpointError, match="can be loaded.* To begin anew, move them away"),
    ):
        checkpointer.load(state)
    assert state["losses"] == []


def test_without_a_checkpoint_nothing_is_changed(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "step-notes.txt").write_text("mine")
    state = make_run()
    before = copy.deepcopy(state["model"].state_dict())
    random = torch.get_rng_state()
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.load(state) is None and checkpointer.latest() is None
    torch.testing.assert_close(state["model"].state_dict(), before, rtol=0, atol=0)
    assert torch.equal(random, torch.get_rng_state())


# ---- disks that fail


def test_a_disk_that_is_full_at_any_operation_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    log = operations(tmp_path / "log")
    print("\n".join(log))
    writes = [at for at, line in enumerate(log) if line.startswith("write")]
    others = sorted(set(range(len(log))) - set(writes))
    assert len(writes) > 100 and len(others) == 14
    # Once the folder has its name the checkpoint is there, and what fails is tidying up.
    for at in sorted(others + [*writes[:: len(writes) // 12], writes[-1]]):
        folder = tmp_path / str(at)
        state = saved(folder, 1, 2, keep=2, async_=False)
        files = FailingFiles(at)
        with Checkpointer(folder, keep=2, async_=bool(at % 2), files=files) as checkpointer:
            full = "No space left on device"
            named = at >= len(log) - 3
            raised: Any = pytest.raises(CheckpointError, match=full)
            with pytest.warns(UserWarning, match=full) if at >= len(log) - 2 else raised:
                checkpointer.save(3, state)
                checkpointer.wait()
            loaded = make_run()
            assert checkpointer.load(loaded) == (3 if named else 2), files.log[at]
            checkpointer.save(4, state)  # there is room again
            checkpointer.wait()
            assert checkpointer.latest() == 4
            if not named:
                assert not list(folder.glob(".part-*"))
        shutil.rmtree(folder)


def test_errors_of_the_disk_say_where_and_what_became_of_earlier_checkpoints(
    tmp_path: Path,
) -> None:
    state = make_run()
    files = FailingFiles(0, errno.EROFS)
    with Checkpointer(tmp_path, files=files) as checkpointer:
        checkpointer.save(7, state)
        with pytest.raises(CheckpointError) as error:
            checkpointer.wait()
    assert f"checkpoint of step 7 in {tmp_path} was not written" in str(error.value)
    assert "Read-only file system" in str(error.value)
    assert "earlier ones are as they were" in str(error.value)
    with pytest.raises(CheckpointError, match="cannot be made"):
        Checkpointer("/proc/pycomm_no_such_folder")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be made.*Error: "):
        Checkpointer(tmp_path / "file")


def test_an_error_of_an_asynchronous_save_is_raised_by_the_next(tmp_path: Path) -> None:
    state = make_run()
    checkpointer = Checkpointer(tmp_path, files=FailingFiles(0))
    checkpointer.save(1, state)
    with pytest.raises(CheckpointError, match="step 1"):
        checkpointer.save(2, state)
    checkpointer.save(3, state)
    checkpointer.close()
    assert checkpointer.latest() == 3


# ---- what a state may be


def test_less_may_be_loaded_than_was_saved_and_not_more(tmp_path: Path) -> None:
    state = saved(tmp_path, 4)
    with Checkpointer(tmp_path, random_state=False) as checkpointer:
        model = make_run()["model"]
        assert checkpointer.load({"model": model}) == 4
        torch.testing.assert_close(model.state_dict(), state["model"].state_dict(), rtol=0, atol=0)
        with pytest.raises(UsageError, match="'ema' is not in the checkpoint; it has .*model"):
            checkpointer.load({"ema": make_run()["model"]})
        with pytest.raises(UsageError, match="'data' is there as per rank, not as model"):
            checkpointer.load({"data": make_run()["model"]})
        with pytest.raises(UsageError, match=r"'model.0.weight' was saved with shape \(10, 6\)"):
            checkpointer.load({"model": nn.Sequential(nn.Linear(6, 9))})
        with pytest.raises(UsageError, match="entries of .* were not saved"):
            checkpointer.load({"model": nn.Bilinear(2, 2, 2)})


def test_a_checkpoint_without_random_states_leaves_them(tmp_path: Path) -> None:
    saved(tmp_path, 4, random_state=False)
    torch.manual_seed(8)
    before = torch.get_rng_state()
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.load({"losses": []}) == 4
    assert torch.equal(before, torch.get_rng_state())


def test_any_nesting_of_values_and_tensors_comes_back(tmp_path: Path) -> None:
    class Queue:
        """A thing with a state of its own, as an outer optimizer has one."""

        def __init__(self, state: Any) -> None:
            self.state = state

        def state_dict(self) -> Any:
            return self.state

        def load_state_dict(self, state: Any) -> None:
            self.state = state

    nested = {
        3: (torch.arange(4), [torch.eye(1), {"a.b": torch.ones(2, 2, dtype=torch.bfloat16)}]),
        "empty": {},
        "scalar": torch.tensor(2.5),
        "none": torch.empty(0, 3),
        "text": ("a", None),
    }
    view = torch.arange(12.0).view(3, 4).t()
    state = {"queue": Queue(nested), "view": view, "mine": PerRank({"x": torch.ones(1)}), "n": 5}
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state)
        loaded: dict[str, Any] = {"queue": Queue({}), "view": 0, "mine": PerRank(None), "n": 0}
        assert checkpointer.load(loaded) == 1
    got = loaded["queue"].state
    assert list(got) == list(nested) and isinstance(got[3], tuple)
    assert got.pop("text") == nested.pop("text")
    assert got[3][1][1]["a.b"].dtype == torch.bfloat16
    for key in (3, "empty", "scalar", "none"):
        torch.testing.assert_close(got[key], nested[key], rtol=0, atol=0, allow_subclasses=False)
    assert torch.equal(loaded["view"], view) and loaded["n"] == 5
    assert torch.equal(loaded["mine"].value["x"], torch.ones(1))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("before", [0, 3])
def test_optimizers_with_and_without_a_state_go_on_exactly(
    momentum: float, before: int, tmp_path: Path
) -> None:
    """Saving must not disturb them, and a parameter that gets no gradient must not either."""

    def make() -> dict[str, Any]:
        torch.manual_seed(0)
        model = nn.ModuleDict({"used": nn.Linear(3, 1), "unused": nn.Linear(2, 2)})
        if momentum:
            return {"model": model, "optimizer": torch.optim.Adam(model.parameters(), lr=0.1)}
        return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}

    def steps(state: dict[str, Any], count: int) -> None:
        for _ in range(count):
            state["model"]["used"](torch.ones(2, 3)).square().sum().backward()
            state["optimizer"].step()
            state["optimizer"].zero_grad()

    undisturbed, state = make(), make()
    steps(undisturbed, before + 3)
    steps(state, before)
    state["optimizer"].param_groups[0]["lr"] = undisturbed["optimizer"].param_groups[0]["lr"] = 0.05
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(before, state)
        loaded = make()
        assert checkpointer.load(loaded) == before
        assert loaded["optimizer"].param_groups[0]["lr"] == 0.05
    undisturbed, again = make(), make()
    for one in (undisturbed, again):
        steps(one, before)
        one["optimizer"].param_groups[0]["lr"] = 0.05
        steps(one, 3)
    for one in (state, loaded):
        steps(one, 3)
        torch.testing.assert_close(
            one["model"].state_dict(), undisturbed["model"].state_dict(), rtol=0, atol=0
        )


def test_arguments_are_refused_with_what_is_expected(tmp_path: Path) -> None:
    run = make_run()
    with pytest.raises(UsageError, match="got keep=0, expected 1 or more, or None"):
        Checkpointer(tmp_path, keep=0)
    with Checkpointer(tmp_path) as checkpointer:
        for state, text in (
            ({"a.b": 1}, "a string without a dot"),
            ({"ranks": 1}, "none of ranks, random_state"),
            ({"optimizer": run["optimizer"]}, "no model in the state has all parameters"),
            ({"model": [run["model"], run["model"]]}, "two stages of a model have a parameter"),
        ):
            with pytest.raises(UsageError, match=text):
                checkpointer.save(1, state)
        with pytest.raises(UsageError, match="got step=-1"):
            checkpointer.save(-1, run)
        assert checkpointer.latest() is None


def test_the_manifest_names_every_file_with_its_checksum(tmp_path: Path) -> None:
    saved(tmp_path, 4)
    (path,) = tmp_path.iterdir()
    manifest = json.loads((path / "manifest.json").read_text())
    assert set(manifest["files"]) == {file.name for file in path.iterdir()} - {"manifest.json"}
    assert manifest["step"] == 4 and manifest["world_size"] == 1
    assert manifest["entries"]["model"] == "model" and manifest["entries"]["data"] == "per rank"


def test_saving_and_loading_warn_of_nothing(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        saved(tmp_path, 4)
        with Checkpointer(tmp_path) as checkpointer:
            checkpointer.load(make_run())
