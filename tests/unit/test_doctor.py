# SPDX-License-Identifier: MIT
"""`python -m pycomm doctor`: what it finds, measures and blames, and that it always comes back."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from ranks import Rank, run_threads

from pycomm.__main__ import main
from pycomm.doctor import arenas, links, machine, network, ranks
from pycomm.doctor.problems import advice, broken
from pycomm.doctor.report import size_text, text_of
from pycomm.options import VARIABLES


@pytest.fixture(autouse=True)
def unlaunched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


def report_of(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    code = main(["doctor", "--json", *words])
    return code, json.loads(capsys.readouterr().out)


def test_three_ranks_are_started_measured_and_described(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, report = report_of(capsys, "--world", "3")
    assert code == 0, report["problems"]
    keys = ["build", "machine", "arena", "network", "gpus", "settings", "ranks", "used", "problems"]
    assert list(report) == keys
    found = report["ranks"]
    assert (found["world_size"], found["started_by"], found["pairs_measured"]) == (3, "doctor", 3)
    host = socket.gethostname()
    assert found["hosts"] == [host] * 3 and report["machine"]["host"] == host
    for row in range(3):
        for column in range(3):
            at = (found["transports"][row][column], found["latency_us"][row][column])
            assert at == (None, None) if row == column else at[0] == "shm" and at[1] > 0
    assert all(found["bandwidth_gbps"][a][b] > 0 for a, b in ((0, 1), (0, 2), (1, 2)))
    assert found["algorithms"]["all_reduce"][0]["from_bytes"] == 8
    assert report["build"]["loads"] and report["build"]["compiler"] != "unknown"
    assert {entry["variable"] for entry in report["settings"]} == set(VARIABLES)
    assert {entry["source"] for entry in report["settings"]} == {"default"}
    assert report["network"]["chosen"]["name"] in [
        one["name"] for one in report["network"]["interfaces"] if one["up"]
    ]
    lines = text_of(report).splitlines()
    assert len(lines) < 60
    for label in ("torch", "pycomm", "cores", "network", "ranks", "pairs", "used", "problems"):
        assert sum(line.startswith(label) for line in lines) == 1, label


def doctor(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_under_torchrun_its_ranks_are_measured_and_rank_0_prints() -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = doctor(*launcher, "-m", "pycomm", "doctor", PYCOMM_TRANSPORT="tcp")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("\nranks ") == 1
    assert "2 of the launcher, on " in done.stdout
    assert "PYCOMM_TRANSPORT=tcp (environment)" in done.stdout
    assert "1   tcp    -" in done.stdout
    assert "between hosts: tcp on " in done.stdout


def test_a_rank_that_never_comes_ends_the_doctor_with_an_error() -> None:
    place = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    done = doctor("-m", "pycomm", "doctor", "--timeout", "2", **place)
    assert done.returncode == 1, done.stderr
    assert "nothing was measured" in done.stdout
    assert "broken: no group: " in done.stdout


def test_a_missing_torch_is_said(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('there is none')\n")
    folders = [str(tmp_path), *filter(None, sys.path)]
    done = doctor("-m", "pycomm", "doctor", PYTHONPATH=os.pathsep.join(folders))
    assert done.returncode == 1, done.stderr
    assert "broken: torch cannot be imported: there is none" in done.stdout


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("PYCOMM_SOCKET_IFNAME", "no_such_card", "no_such_card"),
        ("PYCOMM_TRANSPORT", "rdma", "PYCOMM_TRANSPORT='rdma': expected auto"),
        ("PYCOMM_TCP_CONNECTIONS", "99", "PYCOMM_TCP_CONNECTIONS='99': expected an integer"),
        ("PYCOMM_SEGMENT_BYTES", "5000", "expected a multiple of 4096"),
        ("PYCOMM_ALGO", "circle", "'circle' is no algorithm"),
        ("PYCOMM_REPLACE", "glo", "'glo' is no backend that can be replaced"),
        ("MASTER_ADDR", "no such host", "MASTER_ADDR=no such host: cannot be looked up"),
    ],
)
def test_a_broken_setting_is_named_and_no_ranks_are_started(
    name: str,
    value: str,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(name, value)
    code, report = report_of(capsys)
    assert (code, report["ranks"]) == (1, None)
    (problem,) = [one for one in report["problems"] if one["kind"] == "broken"]
    assert text in problem["what"] and problem["remedy"]
    assert "nothing was measured" in text_of(report)


def test_settings_say_where_they_come_from(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYCOMM_DETECT_TIMEOUT", "7")
    monkeypatch.setenv("PYCOMM_SPEED", "11")
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    code, report = report_of(capsys, "--world", "0")
    assert code == 0
    given = {one["variable"]: one for one in report["settings"]}
    assert given["PYCOMM_DETECT_TIMEOUT"]["value"] == 7.0
    assert given["PYCOMM_DETECT_TIMEOUT"]["source"] == "environment"
    assert given["PYCOMM_CONNECT_TIMEOUT"]["source"] == "default"
    assert given["PYCOMM_TCP_CONNECTIONS"]["value"] == 2
    whats = [one["what"] for one in report["problems"]]
    assert "PYCOMM_SPEED: no such setting" in whats
    assert any(what.startswith("OMP_NUM_THREADS=4096") for what in whats)


def test_a_module_that_does_not_load_is_said_and_everything_else_still_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise ImportError("pycomm was built against torch 1.0; rebuild it")

    monkeypatch.setattr("pycomm.native.load", refuse)
    code, report = report_of(capsys)
    assert (code, report["ranks"], report["used"]) == (1, None, [])
    (problem,) = [one for one in report["problems"] if one["kind"] == "broken"]
    assert problem["what"] == "pycomm was built against torch 1.0"
    assert problem["remedy"] == "rebuild it"
    assert "it does not load" in text_of(report)


def test_a_torch_without_distributed_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dist, "is_available", lambda: False)
    code, report = report_of(capsys)
    assert (code, report["ranks"]) == (1, None)
    assert any("has no torch.distributed" in one["what"] for one in report["problems"])
    assert "without torch.distributed" in text_of(report)


@pytest.mark.parametrize(
    "words", [["--world", "-1"], ["--world", "65"], ["--timeout", "0"], ["--timeout", "nan"]]
)
def test_wrong_arguments_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *words]) == 2
    assert "expected --timeout above 0 and --world from 0 to 64" in capsys.readouterr().err


def test_a_name_server_that_does_not_answer_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def silent(*args: Any, **kwargs: Any) -> Any:
        time.sleep(5)
        raise OSError("it gave up")

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    begun = time.monotonic()
    assert network.resolve("somewhere", 0.1) == (
        None,
        "no answer from the name server in 0.1 s",
    )
    assert time.monotonic() - begun < 4


def test_a_pair_of_ranks_is_measured_from_the_leading_side() -> None:
    def body(me: Rank) -> tuple[float, float]:
        return links.measure_pair(me.backend, me.rank == 1, 1 - me.rank)

    follower, leader = run_threads(body, 2)
    assert follower == (0.0, 0.0)
    assert all(one > 0 for one in leader)


def test_large_groups_measure_neighbours_and_every_host() -> None:
    assert links.pairs_to_measure(["a"] * 3) == [(0, 1), (0, 2), (1, 2)]
    assert len(links.pairs_to_measure(["a"] * 9)) == 36
    pairs = links.pairs_to_measure(["a"] * 8 + ["b"] * 8 + ["c"] * 8)
    assert pairs == [*((rank, rank + 1) for rank in range(23)), (0, 8), (0, 16)]


def test_a_large_group_is_summed_up_by_transport() -> None:
    size = 10
    transports = [
        [None if a == b else "shm" if (a < 5) == (b < 5) else "tcp" for b in range(size)]
        for a in range(size)
    ]
    lines = "\n".join(
        text_of(
            {
                **json.loads(json.dumps(EMPTY)),
                "ranks": {
                    "world_size": size,
                    "hosts": ["a"] * 5 + ["b"] * 5,
                    "started_by": "launcher",
                    "setup_ms": 1.0,
                    "transports": transports,
                    "pairs": 45,
                    "pairs_measured": 45,
                    "latency_bytes": 8,
                    "latency_us": [[float(a + b) for b in range(size)] for a in range(size)],
                    "bandwidth_bytes": 1 << 24,
                    "bandwidth_gbps": [[None] * size for _ in range(size)],
                    "algorithms": {"barrier": [{"from_bytes": 8, "algorithm": "ring"}]},
                },
            }
        ).splitlines()
    )
    assert "10 of the launcher, on 2 hosts: a, b" in lines
    assert "shm, 20 pairs: 1.0, 11.0, 17.0 us" in lines
    assert "tcp, 25 pairs: 5.0, 9.0, 13.0 us" in lines


EMPTY: dict[str, Any] = {
    "build": {
        "torch": None,
        "torch_distributed": False,
        "built_for_torch": None,
        "loads": False,
        "pycomm": "0",
        "python": "3",
    },
    "arena": {"capacity_bytes": None, "running": []},
    "machine": {
        "host": "h",
        "kernel": "6",
        "processor": "p",
        "features": [],
        "usable_cores": 1,
        "cores": {"online": 1, "affinity": 1, "cgroup_quota": 1.5},
        "memory_bytes": {"total": None, "available": None, "cgroup_limit": 1 << 30},
        "limits": {"open_files": None, "locked_memory_bytes": None, "dev_shm_bytes": None},
        "memfd": False,
        "pidfd": False,
        "load_average": 0.0,
        "omp_num_threads": None,
    },
    "network": {"interfaces": [], "chosen": None, "why": None},
    "gpus": {"torch_cuda": None, "devices": [], "driver": None, "pycomm_cuda": False},
    "settings": [],
    "used": [],
    "problems": [],
}


def test_problems_of_several_ranks_are_said_once_and_with_their_host() -> None:
    slow, bad = advice("slow", "wait"), broken("bad", "mend")
    settings = [{"field": "transport", "variable": "PYCOMM_TRANSPORT", "value": "shm"}]
    rows = [
        ("a", [slow], "2.13", "shm"),
        ("a", [slow, bad], "2.13", "shm"),
        ("b", [slow], "2.14", "tcp"),
    ]
    everyone = [
        {
            "host": host,
            "problems": found,
            "build": {"torch": version, "pycomm": "0.1"},
            "settings": [{**settings[0], "value": transport}],
        }
        for host, found, version, transport in rows
    ]
    assert [one.what for one in ranks._merged(everyone)] == ["slow", "a: bad"]
    assert [one.what for one in ranks._differences(everyone)] == [
        "torch is 2.13 on rank 0 and 2.14 on rank 2",
        "PYCOMM_TRANSPORT is shm on rank 0 and tcp on rank 2",
    ]


def test_the_least_core_quota_and_memory_limit_above_the_process_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own"
    monkeypatch.setattr(machine, "CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "OWN_CGROUP", own)
    assert (machine._core_quota(), machine._memory_limit()) == (None, None)
    inner = tmp_path / "cgroup" / "jobs" / "one"
    inner.mkdir(parents=True)
    own.write_text("0::/jobs/one\n")
    (inner / "cpu.max").write_text("max 100000\n")
    assert machine._core_quota() is None
    (inner.parent / "cpu.max").write_text("150000 100000\n")
    (inner / "memory.max").write_text("4096\n")
    (inner.parent / "memory.max").write_text("max\n")
    assert (machine._core_quota(), machine._memory_limit()) == (1.5, 4096)
    assert machine.usable_cores(8, 1.5) == 1
    old = tmp_path / "cgroup" / "cpu" / "box"
    old.mkdir(parents=True)
    own.write_text("3:cpu,cpuacct:/box\n2:memory:/elsewhere\n")
    (old / "cpu.cfs_quota_us").write_text("400000\n")
    (old / "cpu.cfs_period_us").write_text("100000\n")
    assert (machine._core_quota(), machine._memory_limit()) == (4.0, None)


def test_advice_follows_from_the_machine() -> None:
    facts = json.loads(json.dumps(EMPTY["machine"]))
    facts.update(omp_num_threads="2", load_average=3.0, limits={"open_files": 100})
    found = machine._problems(facts, 2)
    assert [one.kind for one in found] == ["broken"] + ["advice"] * 5
    texts = ["memfd_create", "pidfd_open", "2 ranks share 1 usable core:", "OMP_NUM_THREADS=2"]
    texts += ["100 open files", "the load average is 3.0"]
    for problem, text in zip(found, texts, strict=True):
        assert text in problem.what and problem.remedy


def test_sizes_are_written_in_binary_units() -> None:
    sizes = (8, 4096, 1 << 24, 25278021632, None)
    assert [size_text(one) for one in sizes] == [
        "8 B",
        "4 KiB",
        "16 MiB",
        "23.54 GiB",
        "unlimited",
    ]


def test_arenas_of_running_processes_are_shown() -> None:
    program = """
import sys, torch
from pycomm import memory
memory.install()
x, y = torch.empty(1 << 20), torch.empty(1 << 20)
del y
too_large = torch.empty(1 << 27)
print(flush=True)
sys.stdin.read()
"""
    environment = {**os.environ, "PYCOMM_ARENA_BYTES": "64M"}
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as running:
        assert running.stdout and running.stdout.readline() == b"\n"
        found = arenas.describe(True)
        assert found["capacity_bytes"] > 0
        (one,) = (arena for arena in found["running"] if arena["pid"] == running.pid)
        text = text_of(
            {**EMPTY, "ranks": None, "arena": {"capacity_bytes": 1 << 30, "running": [one]}}
        )
        running.communicate()
    assert one == {
        "pid": running.pid,
        "capacity_bytes": 64 << 20,
        "used_bytes": 4 << 20,
        "used_peak_bytes": 8 << 20,
        "touched_bytes": 8 << 20,
        "quarantined_bytes": 0,
        "blocks": 2,
        "fallbacks": 1,
    }
    assert "\narena        up to 1 GiB of shared memory in each process\n" in text
    expected = "4 MiB in use, at most 8 MiB; 8 MiB of 64 MiB touched; 1 fallbacks"
    assert f"pid {running.pid}: {expected}\n" in text


def test_of_many_arenas_the_largest_are_shown() -> None:
    one = dict.fromkeys(arenas._STATISTICS, 0)
    running = [{**one, "pid": pid, "touched_bytes": pid << 20} for pid in range(1, 31)]
    text = text_of(
        {**EMPTY, "ranks": None, "arena": {"capacity_bytes": 1 << 30, "running": running}}
    )
    shown = [int(word.split(":")[0]) for word in text.split("pid ")[1:]]
    assert shown == [30, 29, 28, 27]
    assert "and 26 more processes with 351 MiB touched" in text
