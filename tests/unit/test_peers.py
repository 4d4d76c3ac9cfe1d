# SPDX-License-Identifier: MIT
"""The harness that times pycomm beside other libraries: order, checks, absence, death, hangs."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.peers import contenders, elements, schedule
from benchmarks.peers.cells import COLLECTIVES, Cell, list_cells, parse_size, size_text
from benchmarks.peers.interleave import Effort, World
from benchmarks.peers.plot import plot
from benchmarks.peers.results import Results
from benchmarks.peers.shared_files import remove_leftovers
from benchmarks.peers.table import groups_of, report, rows_of, sources

PROGRAM = Path(__file__).with_name("peer_program.py")
QUICK = Effort(cell_s=0.02, rounds=4, patience_s=30.0)
SMALL = Cell("all_reduce", 64, "float32", 2)


def pretender(behaviour, name=""):
    command = f"{sys.executable} {PROGRAM} {behaviour} {{world}}"
    return contenders.Contender(name or behaviour, command)


def run_cells(cells, *chosen, effort=QUICK, world=2):
    """The outcomes, and what was said."""
    said = []
    with World(world, effort, said.append).residents(chosen) as residents:
        outcomes = [residents.run(cell) for cell in cells]
    return outcomes, said


def processes_of_pretenders():
    command = ["pgrep", "-f", str(PROGRAM)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path, monkeypatch):
    """No process and no folder survives a run, whatever happened in it."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    yield
    deadline = time.monotonic() + 5
    while processes_of_pretenders() and time.monotonic() < deadline:
        time.sleep(0.02)  # a killed rank is reaped by init
    assert not processes_of_pretenders()
    assert not list(tmp_path.glob("peers_*"))


def test_turns_reverse_after_every_round():
    assert list(schedule.turns("ABC", 3)) == [list("ABC"), list("CBA"), list("ABC")]


def test_a_sample_is_the_slowest_ranks_time_for_one_call():
    assert schedule.slowest_ns(["times 100 400", "times 300 200"], 10) == [30.0, 40.0]


@pytest.mark.parametrize("answers", [["no"], ["times 1 2", "times 1"]])
def test_answers_that_are_no_times_are_refused(answers):
    with pytest.raises(ValueError):
        schedule.slowest_ns(answers, 1)


def test_percentiles_are_samples():
    values = [float(i) for i in range(1, 101)]
    assert schedule.percentile(values, 0.5) == 50
    assert schedule.percentile(values, 0.99) == 99
    assert schedule.percentile([7.0], 0.99) == 7


def test_short_calls_share_a_sample_and_long_ones_have_their_own():
    short = schedule.plan_turn(500, 8, 50e6)
    assert short.calls == schedule.CALLS_MAX and short.warm > 0
    assert schedule.plan_turn(90e6, 1 << 28, 50e6) == schedule.Turn(0, 1, 1)


def test_sizes_are_whole_blocks_of_every_rank():
    cells = list_cells(["all_reduce", "all_to_all"], [8, 1000], ["float32"], [3])
    assert [cell.bytes for cell in cells] == [8, 1000, 12, 996]
    assert list_cells(["barrier"], [8, 16], ["float32"], [2]) == [Cell("barrier", 0, "float32", 2)]
    assert parse_size("16K") == 16384 and size_text(16384) == "16 KiB"
    for wrong in ("", "K", "-1", "4T"):
        with pytest.raises(ValueError):
            parse_size(wrong)


@pytest.mark.parametrize("collective", COLLECTIVES)
def test_first_results_are_checked_in_every_collective(collective):
    cells = list_cells([collective], [240], ["float32", "bfloat16", "int8"], [3])
    outcomes, said = run_cells(cells, pretender("good"), pretender("wrong"), world=3)
    for outcome in outcomes:
        assert outcome["good"]["wrong"] == 0
        assert outcome["wrong"]["wrong"] == (0 if collective == "barrier" else 1)
        assert outcome["good"]["p50_us"] > 0
    assert collective == "barrier" or any("1 wrong elements" in text for text in said)


def test_patterns_differ_between_ranks_and_fit_into_the_narrowest_types():
    for dtype in ("int8", "float16", "bfloat16"):
        assert elements.pattern(dtype, 0).tolist() != elements.pattern(dtype, 1).tolist()
        assert len(set(elements.sums(dtype, 2).tolist())) > 2
    assert elements.sums("int8", 12).max() < 128


def test_contenders_take_turns(tmp_path, monkeypatch):
    log = tmp_path / "log"
    monkeypatch.setenv("PEERS_TEST_LOG", str(log))
    run_cells([SMALL], pretender("good"), pretender("narrow"))
    estimates, timed = log.read_text().split()[:4], log.read_text().split()[4:]
    assert sorted(estimates) == ["good", "good", "narrow", "narrow"]
    assert timed == ["good", "narrow", "narrow", "good"] * 2


def test_an_absent_peer_is_reported_and_the_others_run():
    missing = contenders.Contender("missing", "x", needs=("bin/no_such_rank",))
    unknown = contenders.Contender("unknown", "/no/such/program")
    (outcome,), _ = run_cells([SMALL], missing, unknown, pretender("good"), pretender("ends"))
    assert "bin/no_such_rank is not installed" in outcome["missing"]["absent"]
    assert "/no/such/program" in outcome["unknown"]["absent"]
    assert "no such device" in outcome["ends"]["absent"]
    assert outcome["good"]["samples"] > 0


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [("dies", "rank 1 (pid "), ("hangs", "rank 1 did not answer 'time "), ("narrow", "no int8")],
)
def test_one_that_fails_is_named_and_the_others_go_on(behaviour, words):
    cells = [Cell("all_reduce", 64, "int8", 2), SMALL]
    effort = Effort(cell_s=0.02, rounds=4, patience_s=3.0)
    chosen = (pretender(behaviour), pretender("good"))
    (first, second), said = run_cells(cells, *chosen, effort=effort)
    assert words in first[behaviour]["absent"]
    assert first["good"]["samples"] > 0 and second["good"]["samples"] > 0
    if behaviour == "narrow":
        assert second["narrow"]["samples"] > 0
        return
    assert second[behaviour]["absent"] == first[behaviour]["absent"]
    assert any(behaviour in text for text in said)
    assert behaviour != "dies" or "out of luck" in first["dies"]["absent"]


def test_a_rank_that_never_comes_is_missed():
    effort = Effort(cell_s=0.02, rounds=4, start_s=3.0)
    (outcome,), _ = run_cells([SMALL], pretender("good"), pretender("mute"), effort=effort)
    assert "1 of 2 ranks came within 3 s" in outcome["mute"]["absent"]
    assert outcome["good"]["samples"] > 0


def test_a_slow_one_is_not_asked_for_more(monkeypatch):
    monkeypatch.setattr("benchmarks.peers.interleave.TOO_SLOW_S", 0.04)
    larger = Cell("all_reduce", 128, "float32", 2)
    (first, second), _ = run_cells([SMALL, larger], pretender("slow"))
    assert first["slow"]["p50_us"] > 40_000
    assert "at a smaller size" in second["slow"]["absent"]


def test_ranks_cost_nothing_while_others_are_timed():
    with World(2, QUICK, print).residents([pretender("good")]) as residents:
        residents.run(SMALL)
        pids = [rank.pid for rank in residents.running["good"].ranks]

        def ticks():
            stats = [Path(f"/proc/{pid}/stat").read_text().rsplit(") ")[1].split() for pid in pids]
            return sum(int(stat[11]) + int(stat[12]) for stat in stats)

        # The first time may see the end of what came before.
        used = []
        while not used or (used[-1] > 0 and len(used) < 5):
            before = ticks()
            time.sleep(0.3)
            used.append(ticks() - before)
        assert used[-1] == 0, f"{used} ticks of 10 ms in 0.3 s each"


def test_results_gather_in_one_file_and_newer_cells_replace_older(tmp_path):
    path = tmp_path / "results.json"
    outcome = {
        name: {"p50_us": us, "rounds_us": [us, us, 100.0]}
        for name, us in [("ideal", 1.0), ("pycomm", 2.0), ("impi", 3.0), ("torch_pycomm", 9.0)]
    }
    outcome["mpich"] = {"absent": "why not"}
    outcome["openmpi"] = {"p50_us": 2.5, "rounds_us": [2.5], "wrong": 1}
    for commit, cell in [("one", SMALL), ("two", Cell("barrier", 0, "float32", 2)), ("3", SMALL)]:
        results = Results(path)
        results.run["commit"] = commit
        results.add(cell, outcome)
        results.save()
    data = json.loads(path.read_text())
    commits = [data["runs"][cell["run"]]["commit"] for cell in data["cells"]]
    assert commits == ["3", "two"] and len(data["runs"]) == 2
    results.add(SMALL, {"numpy_impi": {"p50_us": 1.0, "rounds_us": [1.0]}})  # of others: both stay
    assert len(results.data["cells"]) == 3
    group = groups_of(data["cells"])[0]
    assert rows_of(data["cells"], group)[1] == (
        ["all_reduce 64 B x2", "1.00", "2.00", "3.00", "-", "2.50!", "1.50 (impi)", "0.50"]
    )
    text = report(data["cells"], markdown=True)
    assert "| all_reduce 64 B x2 | 9.00 |" in text and "- mpich: why not" in text
    assert "- 1 cells of 3, " in sources(data["cells"], data["runs"])


def test_plots_need_two_sizes(tmp_path):
    found = {"ideal": {"p50_us": 1.0}, "a": {"p50_us": 2.0}}
    cells = [
        {**vars(Cell("all_reduce", size, "float32", 2)), "contenders": found} for size in (64, 128)
    ]
    plot(cells, ["ideal", "a", "b"], "ideal", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
    with pytest.raises(ValueError):
        plot(cells[:1], ["a"], "ideal", tmp_path / "plot.png")


def test_only_unused_files_of_mpi_libraries_are_removed(tmp_path):
    begin_ns = time.time_ns()
    old, used, left, other = (
        tmp_path / name for name in ("mpich_shm_0", "mpich_shm_1", "mpich_shm_2", "somebody")
    )
    for path in (old, used, left, other):
        path.write_bytes(b"x")
    later_ns = old.stat().st_ctime_ns + 1
    assert remove_leftovers(later_ns + 10**9, tmp_path) == []
    with used.open():
        assert sorted(remove_leftovers(begin_ns - 10**9, tmp_path)) == [old.name, left.name]
    assert used.exists() and other.exists()


def test_a_terminated_run_ends_its_ranks(tmp_path):
    command = [sys.executable, "-m", "benchmarks.peers", "run", "--sizes", "64", "--world", "2"]
    command += ["--seconds", "60", "--rounds", "1000", "--peers", str(tmp_path)]
    command += ["--contenders", "mpich", "--contender", f"mine={sys.executable} {PROGRAM} good 2"]
    log = tmp_path / "log"
    env = {**os.environ, "TMPDIR": str(tmp_path), "PEERS_TEST_LOG": str(log)}
    process = subprocess.Popen(command, cwd=PROGRAM.parents[2], env=env)
    deadline = time.monotonic() + 60
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    assert process.wait(20) == 143  # the fixture looks for what is left


def test_command_writes_a_table_and_ends_with_its_code(tmp_path):
    path = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks.peers", "run", "--contenders", "impi"]
    command += ["--peers", str(tmp_path), "--world", "2", "--sizes", "64", "--seconds", "0.01"]
    for behaviour, code in [("good", 0), ("wrong", 1)]:
        added = ["--contender", f"mine={sys.executable} {PROGRAM} {behaviour} {{world}}"]
        done = subprocess.run(
            [*command, *added, "--json", str(path)],
            cwd=PROGRAM.parents[2],
            capture_output=True,
            text=True,
            env={**os.environ, "TMPDIR": str(tmp_path)},
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert "all_reduce 64 B x2" in done.stdout
        assert "impi/bin/mpiexec is not installed" in done.stdout
    assert subprocess.run([*command, "--world", "x"], cwd=PROGRAM.parents[2]).returncode == 2
