# SPDX-License-Identifier: MIT
"""ShardedSampler: who gets which samples, and every sample once however ranks stop and go on."""

from __future__ import annotations

import pickle
import warnings
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from pycomm import UsageError
from pycomm.data import ShardedSampler
from pycomm.data.order import epoch_order
from pycomm.data.shares import PARTITIONS, UNEVEN, apportion


def samplers(length: int, world_size: int, **how: Any) -> list[ShardedSampler]:
    data = range(length)
    return [ShardedSampler(data, rank, world_size, **how) for rank in range(world_size)]


def batches_of(ranks: list[ShardedSampler]) -> list[list[list[int]]]:
    """Every rank's batches of what is left of the epoch."""
    return [list(one.batches()) for one in ranks]


def flat(ranks: list[list[list[int]]]) -> list[int]:
    return [index for batches in ranks for batch in batches for index in batch]


# ---- shares


@given(
    total=st.integers(0, 500),
    weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=9),
    minimum=st.integers(0, 2),
)
def test_apportioned_parts_add_up_and_are_near_their_share(
    total: int, weights: list[float], minimum: int
) -> None:
    total += minimum * len(weights)
    parts = apportion(total, tuple(weights), minimum)
    assert sum(parts) == total and min(parts) >= minimum
    if minimum == 0:
        for part, weight in zip(parts, weights, strict=True):
            assert abs(part - total * weight / sum(weights)) <= 1 + 1e-6


@settings(deadline=None)
@given(
    length=st.integers(1, 300),
    world_size=st.integers(1, 9),
    batch_size=st.integers(1, 12),
    partition=st.sampled_from(PARTITIONS),
    shuffle=st.booleans(),
    data=st.data(),
)
def test_every_rank_has_as_many_batches_and_every_sample_comes_once(
    length: int, world_size: int, batch_size: int, partition: str, shuffle: bool, data: Any
) -> None:
    weights = data.draw(st.lists(st.floats(0.1, 10), min_size=world_size, max_size=world_size))
    how = {
        "batch_size": batch_size,
        "partition": partition,
        "shuffle": shuffle,
        "weights": weights,
    }
    if length < world_size:
        with pytest.raises(UsageError, match="do not make one step"):
            samplers(length, world_size, **how)
        return
    got = batches_of(samplers(length, world_size, **how))
    assert sorted(flat(got)) == list(range(length))
    assert len({len(batches) for batches in got}) == 1
    assert all(batch for batches in got for batch in batches)
    # All whole steps have the same sizes; only the last may differ.
    for batches in got:
        assert len({len(batch) for batch in batches[:-1]}) <= 1
    for step in list(zip(*got, strict=True))[:-1]:
        assert sum(map(len, step)) == batch_size * world_size


@pytest.mark.parametrize("partition", PARTITIONS)
def test_drop_leaves_out_less_than_a_step_and_join_nothing(partition: str) -> None:
    dropping = batches_of(samplers(103, 4, partition=partition, batch_size=3, uneven="drop"))
    assert [len(batches) for batches in dropping] == [8] * 4
    assert len(set(flat(dropping))) == 96 == len(flat(dropping))
    joining = samplers(
        103, 4, partition=partition, batch_size=3, uneven="join", weights=[1, 1, 1, 0.25]
    )
    got = batches_of(joining)
    assert sorted(flat(got)) == list(range(103))
    assert [len(batches) for batches in got] == [11, 11, 11, 3]


def test_a_slow_rank_gets_less_of_every_step() -> None:
    got = batches_of(samplers(440, 4, batch_size=10, weights=[1, 1, 1, 0.1]))
    assert [len(batches[0]) for batches in got] == [13, 13, 13, 1]
    assert len({len(batches) for batches in got}) == 1


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_random_steps_have_the_same_samples_at_every_world_size(world_size: int) -> None:
    got = batches_of(samplers(100, world_size, batch_size=16 // world_size))
    steps = [[i for batch in step for i in batch] for step in zip(*got, strict=True)]
    order = epoch_order(100, 0, 0, True).tolist()
    assert steps == [order[i : i + 16] for i in range(0, 96, 16)] + [order[96:]] or (
        world_size == 8 and steps[:-1] == [order[i : i + 16] for i in range(0, 80, 16)]
    )


def test_range_gives_each_rank_one_stretch_of_the_data_set() -> None:
    for rank, batches in enumerate(batches_of(samplers(90, 3, partition="range", batch_size=5))):
        mine = flat([batches])
        assert sorted(mine) == list(range(30 * rank, 30 * rank + 30))
        assert mine != sorted(mine)
    in_order = batches_of(samplers(90, 3, partition="range", batch_size=5, shuffle=False))
    assert flat(in_order) == list(range(90))


def test_hash_keeps_samples_with_their_rank_and_moves_few_when_one_joins() -> None:
    def owners(world_size: int, epoch: int) -> dict[int, int]:
        ranks = samplers(4000, world_size, partition="hash", batch_size=1)
        for one in ranks:
            one.set_epoch(epoch)
        return {i: rank for rank, got in enumerate(batches_of(ranks)) for i in flat([got])}

    four = owners(4, 0)
    assert sum(four[i] != rank for i, rank in owners(4, 1).items()) < 0.05 * 4000
    # A fifth must move; what is over a rank's even share moves besides.
    assert sum(four[i] != rank for i, rank in owners(5, 0).items()) < 0.3 * 4000


def test_an_epoch_has_an_order_of_its_own_that_no_library_decides() -> None:
    # Written out: a checkpoint of today must mean the same samples with tomorrow's NumPy.
    assert epoch_order(8, 0, 0, True).tolist() == ORDER_0
    assert epoch_order(8, 0, 1, True).tolist() == ORDER_1
    assert epoch_order(8, 1, 0, True).tolist() not in (ORDER_0, ORDER_1)


ORDER_0 = [0, 1, 6, 3, 5, 4, 2, 7]
ORDER_1 = [3, 0, 1, 5, 2, 7, 4, 6]


# ---- stop and go on


def advance(sampler: ShardedSampler, batches: int) -> list[int]:
    """What a rank gets in so many batches, going on over the ends of epochs."""
    got: list[int] = []
    while batches > 0:
        for batch in sampler.batches():
            got += batch
            batches -= 1
            if batches == 0:
                break
    return got


def finish(ranks: list[ShardedSampler]) -> list[int]:
    """What all ranks get until they have finished every epoch that anybody had begun."""
    got: list[int] = []
    for one in ranks:
        target = max(one.epoch for one in ranks)
        while one.epoch < max([target, *one._at.records]) or not one._finished():
            got += advance(one, 1)
    return got


@settings(deadline=None, max_examples=200)
@given(
    length=st.integers(10, 120),
    in_step=st.booleans(),
    uneven=st.sampled_from(UNEVEN),
    partition=st.sampled_from(PARTITIONS),
    shuffle=st.booleans(),
    seed=st.integers(0, 2**63),
    lives=st.integers(2, 5),
    data=st.data(),
)
def test_every_sample_comes_once_through_any_changes_of_world_size(
    length: int,
    in_step: bool,
    uneven: str,
    partition: str,
    shuffle: bool,
    seed: int,
    lives: int,
    data: Any,
) -> None:
    """Ranks stop anywhere and others go on, several times; in step, or each at its own speed."""
    in_step = in_step and uneven != "join"
    handed: Counter[int] = Counter()
    states: list[dict[str, Any]] = []
    for life in range(lives):
        world_size = data.draw(st.integers(1, 5), label="world size")
        weight = st.floats(0.2, 5)
        weights = data.draw(st.lists(weight, min_size=world_size, max_size=world_size))
        batch_size = data.draw(st.integers(1, length // world_size // 2), label="batch size")
        ranks = samplers(
            length,
            world_size,
            batch_size=batch_size,
            weights=weights,
            uneven=uneven,
            partition=partition,
            shuffle=shuffle,
            seed=seed if life == 0 else 0,
        )
        states = pickle.loads(pickle.dumps(states))
        for one in ranks if states else []:
            if in_step:
                one.load_state_dict(states[-1])
            else:
                one.load_rank_states(states)
        if life == lives - 1:
            handed.update(finish(ranks))
            break
        same = data.draw(st.integers(0, 20), label="batches")
        for one in ranks:
            mine = same if in_step else data.draw(st.integers(0, 20), label="batches")
            handed.update(advance(one, mine))
        states = [one.state_dict() for one in ranks]
        data.draw(st.randoms()).shuffle(states)
    epochs = max(one.epoch for one in ranks) + 1
    note(f"{epochs} epochs")
    if uneven == "drop":
        assert max(handed.values()) <= epochs
    else:
        assert handed == {index: epochs for index in range(length)}


def test_what_ranks_in_front_took_along_to_the_next_epoch_is_not_given_out_again() -> None:
    """A drawing that once lost samples: what is left of an epoch makes no step for three ranks."""
    handed: Counter[int] = Counter()
    states: list[dict[str, Any]] = []
    for weights, batch_size, batches in (
        ([0.2, 1, 1], 2, [1, 7, 6]),
        ([5, 0.2, 1], 1, [0, 3, 8]),
        ([5, 1, 0.2], 2, []),
    ):
        ranks = samplers(13, 3, batch_size=batch_size, weights=weights, shuffle=False)
        for one in ranks if states else []:
            one.load_rank_states(states)
        for one, count in zip(ranks, batches, strict=False):
            handed.update(advance(one, count))
        states = [one.state_dict() for one in ranks]
    handed.update(finish(ranks))
    assert handed == dict.fromkeys(range(13), max(one.epoch for one in ranks) + 1)


def test_a_rank_has_samples_in_a_join_however_small_its_weight_is() -> None:
    """Or it would go through the epochs alone."""
    ranks = samplers(10, 3, batch_size=2, weights=[100, 1, 1], uneven="join")
    assert [len(batches) for batches in batches_of(ranks)] == [4, 1, 1]


@given(
    length=st.integers(20, 100),
    partition=st.sampled_from(PARTITIONS),
    uneven=st.sampled_from(UNEVEN),
    stop=st.integers(0, 12),
    rank=st.integers(0, 2),
)
@settings(deadline=None)
def test_resumed_at_the_same_world_size_every_batch_is_that_of_the_undisturbed_run(
    length: int, partition: str, uneven: str, stop: int, rank: int
) -> None:
    how = {"partition": partition, "uneven": uneven, "batch_size": 2, "weights": [1, 2, 1]}
    undisturbed = [one for one in samplers(length, 3, **how)][rank]
    stopped, resumed = samplers(length, 3, **how)[rank], samplers(length, 3, **how)[rank]
    assert advance(stopped, stop) == advance(undisturbed, stop)
    resumed.load_state_dict(stopped.state_dict())
    assert advance(resumed, 40) == advance(undisturbed, 40)


def test_resumed_at_another_world_size_steps_have_the_samples_of_the_undisturbed_run() -> None:
    undisturbed = samplers(203, 4, batch_size=3)
    steps = list(zip(*batches_of(undisturbed), strict=True))
    stopped = samplers(203, 4, batch_size=3)
    for one in stopped:
        advance(one, 5)
    for world_size in (1, 2, 3, 6):
        going_on = samplers(203, world_size, batch_size=12 // world_size)
        for one in going_on:
            one.load_state_dict(stopped[2].state_dict())
        got = list(zip(*batches_of(going_on), strict=True))
        assert [sum(step, []) for step in got] == [sum(step, []) for step in steps[5:]]


def test_weights_change_in_mid_epoch() -> None:
    ranks = samplers(200, 2, batch_size=10)
    handed = flat([[advance(one, 3)] for one in ranks])
    for rank, one in enumerate(ranks):
        one.reshard(rank, 2, weights=[1, 0.25])
    got = batches_of(ranks)
    assert [len(batches[0]) for batches in got] == [16, 4]
    assert sorted(handed + flat(got)) == list(range(200))


def test_set_epoch_neither_repeats_nor_loses_what_was_loaded() -> None:
    (stopped,) = samplers(40, 1, batch_size=4)
    stopped.set_epoch(2)
    first = advance(stopped, 3)
    (resumed,) = samplers(40, 1, batch_size=4)
    resumed.load_state_dict(stopped.state_dict())
    assert resumed.epoch == 2
    resumed.set_epoch(2)
    assert len(resumed.batches()) == 7
    assert sorted(first + advance(resumed, 7)) == list(range(40))
    assert resumed.epoch == 2
    resumed.set_epoch(3)
    assert sorted(advance(resumed, 10)) == list(range(40))
    resumed.load_state_dict(stopped.state_dict())
    with pytest.warns(UserWarning, match="drops the position that was loaded, in epoch 2"):
        resumed.set_epoch(0)


def test_a_state_of_a_finished_epoch_begins_the_next() -> None:
    ranks = samplers(41, 3, batch_size=2)
    batches_of(ranks)
    for world_size in (3, 2):
        for one in samplers(41, world_size, batch_size=2):
            one.load_state_dict(ranks[0].state_dict())
            assert one.epoch == 1 and list(one.batches())


# ---- errors


def test_arguments_are_refused_with_what_is_expected() -> None:
    for how, text in (
        ({"rank": 4, "world_size": 4}, "got rank=4, expected 0 to 3"),
        ({"partition": "modulo"}, "expected one of random, range, hash"),
        ({"uneven": "pad"}, "expected one of spread, drop, join"),
        ({"weights": [1.0, 2.0]}, "expected 1 positive numbers"),
        ({"weights": [0.0]}, "expected 1 positive numbers"),
        ({"batch_size": 0}, "expected 1 or more samples"),
        ({"batch_size": 11, "uneven": "drop"}, "10 samples do not make one step"),
    ):
        with pytest.raises(UsageError, match=text):
            ShardedSampler(range(10), **how)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"batch_sampler=sampler.batches\(\)"):
        iter(next(iter(ShardedSampler(range(10), batch_size=2))))  # type: ignore[call-overload]


def test_states_that_do_not_fit_are_refused() -> None:
    ranks = samplers(40, 2, batch_size=2, uneven="join")
    states = [one.state_dict() for one in ranks]
    other = ShardedSampler(range(40), 0, 1, batch_size=2)
    with pytest.raises(UsageError, match=r"ranks \[1\] of 2 are missing.*load_rank_states"):
        other.load_state_dict(states[0])
    with pytest.raises(UsageError, match="of a data set of 40 samples, this one has 41"):
        ShardedSampler(range(41), 0, 1).load_rank_states(states)
    with pytest.raises(UsageError, match="states differ in seed"):
        other.load_rank_states([states[0], {**states[1], "seed": 9}])
    with pytest.raises(UsageError, match="versions"):
        other.load_state_dict({})
    sampler = ShardedSampler(range(4), batch_size=4)
    sampler.consume()
    with pytest.raises(UsageError, match="do two loaders iterate over one sampler"):
        sampler.consume()


def test_nothing_is_warned_of_in_a_plain_run() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one = ShardedSampler(range(10), batch_size=2)
        for epoch in range(3):
            one.set_epoch(epoch)
            assert sum(map(len, one.batches())) == 10
