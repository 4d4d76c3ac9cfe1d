# SPDX-License-Identifier: MIT
"""Options and environment variables: precedence, defaults, and what a wrong value says."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

import pycomm
from pycomm import backend
from pycomm.options import VARIABLES, Options

# Variable to (a good value, what it becomes).
GOOD: dict[str, tuple[str, Any]] = {
    "PYCOMM_TRANSPORT": ("tcp,shm", "tcp,shm"),
    "PYCOMM_ALGO": ("all_reduce=ring", "all_reduce=ring"),
    "PYCOMM_WIRE": ("fp16s", "fp16s"),
    "PYCOMM_DETECT_TIMEOUT": ("0.5", 0.5),
    "PYCOMM_CONNECT_TIMEOUT": ("20", 20.0),
    "PYCOMM_SOCKET_IFNAME": ("lo", "lo"),
    "PYCOMM_PORT_RANGE": ("40000-40100", (40000, 40100)),
    "PYCOMM_HOST_ID": ("node7", "node7"),
    "PYCOMM_TCP_CONNECTIONS": ("4", 4),
    "PYCOMM_SEGMENT_BYTES": ("8192", 8192),
    "PYCOMM_CHECK_PLANS": ("1", True),
    "PYCOMM_DEVICE_MODE": ("S", "S"),
    "PYCOMM_INTER": ("pycomm", "pycomm"),
    "PYCOMM_BLOCKING_WAIT": ("1", True),
    "PYCOMM_FLIGHT_DIR": ("records", "records"),
}
# Variable, a value that is not understood, what the text must say is expected.
BAD = [
    ("PYCOMM_TRANSPORT", "infiniband", "expected auto, or a comma-separated list of shm, tcp"),
    ("PYCOMM_TRANSPORT", "", "expected auto, or a comma-separated list of shm, tcp"),
    ("PYCOMM_TRANSPORT", "shm,", "expected auto, or a comma-separated list of shm, tcp"),
    ("PYCOMM_WIRE", "fp16", "expected one of fp32, bf16, fp16s, int8, auto"),
    ("PYCOMM_WIRE", "int4", "expected one of fp32, bf16, fp16s, int8, auto"),
    ("PYCOMM_DETECT_TIMEOUT", "soon", "expected a number of seconds, 0 or more, such as 3 or 0.5"),
    ("PYCOMM_DETECT_TIMEOUT", "-1", "expected a number of seconds, 0 or more"),
    ("PYCOMM_DETECT_TIMEOUT", "nan", "expected a number of seconds, 0 or more"),
    ("PYCOMM_CONNECT_TIMEOUT", "inf", "expected a number of seconds, 0 or more"),
    ("PYCOMM_TCP_CONNECTIONS", "0", "expected an integer from 1 to 16"),
    ("PYCOMM_TCP_CONNECTIONS", "17", "expected an integer from 1 to 16"),
    ("PYCOMM_TCP_CONNECTIONS", "two", "expected an integer from 1 to 16"),
    ("PYCOMM_SEGMENT_BYTES", "100", "expected an integer from 4096 to 16777216"),
    ("PYCOMM_SEGMENT_BYTES", "1e5", "expected an integer from 4096 to 16777216"),
    ("PYCOMM_SEGMENT_BYTES", "-4096", "expected an integer from 4096 to 16777216"),
    ("PYCOMM_PORT_RANGE", "40000", "expected LOW-HIGH, two ports from 1 to 65535"),
    ("PYCOMM_PORT_RANGE", "40100-40000", "expected LOW-HIGH"),
    ("PYCOMM_PORT_RANGE", "0-10", "expected LOW-HIGH"),
    ("PYCOMM_PORT_RANGE", "60000-70000", "such as 40000-40100"),
    ("PYCOMM_PORT_RANGE", "-5-10", "expected LOW-HIGH"),
    ("PYCOMM_HOST_ID", "", "expected a text without spaces"),
    ("PYCOMM_HOST_ID", "a b", "expected a text without spaces"),
    ("PYCOMM_CHECK_PLANS", "yes", "expected 0 or 1"),
    ("PYCOMM_ARENA", "on", "expected 0 or 1"),
    ("PYCOMM_ARENA_BYTES", "half", "expected a number of bytes, such as 8G, 512M or 1048576"),
    ("PYCOMM_ARENA_BYTES", "8GB", "0 for none"),
    ("PYCOMM_ARENA_BYTES", "-1", "expected a number of bytes"),
    ("PYCOMM_ARENA_BYTES", "1000T", "expected a number of bytes"),
    ("PYCOMM_INTER", "carrier", "expected nccl or one that is registered ("),
    ("PYCOMM_LOG", "loud", "expected error, warning, info or debug"),
]


def create(options: Any = None) -> Any:
    """What torch calls, for a group of one rank."""
    given = SimpleNamespace(
        store=dist.PrefixStore("options", dist.HashStore()),
        group_rank=0,
        group_size=1,
        timeout=timedelta(seconds=10),
        group_id="options",
    )
    made = backend.create(given, options)
    made.close("the test is over", False)
    return made


def test_nothing_is_set_by_default() -> None:
    assert Options().resolved({}) == {}


def test_every_variable_that_sets_a_field_is_tested_here() -> None:
    fields = {name for name, (field, _) in VARIABLES.items() if field is not None}
    assert set(GOOD) | {"PYCOMM_DETERMINISTIC"} == fields


def test_deterministic_chooses_the_algorithms_that_add_in_rank_order() -> None:
    direct = "all_reduce=direct,reduce_scatter=direct,reduce=direct"
    assert Options(deterministic=True).resolved({}) == {"algorithm": direct}
    assert Options().resolved({"PYCOMM_DETERMINISTIC": "1"}) == {"algorithm": direct}
    assert Options(deterministic=False).resolved({"PYCOMM_DETERMINISTIC": "1"}) == {}
    both = Options(deterministic=True, algorithm="broadcast=binomial_tree,all_reduce=direct")
    assert both.resolved({})["algorithm"].startswith(direct)
    for other in ("ring", "all_reduce=ring"):
        with pytest.raises(pycomm.UsageError, match="expected no other algorithm than direct"):
            Options(deterministic=True, algorithm=other).resolved({})
    with pytest.raises(pycomm.UsageError, match="not in rank order; leave one of them out"):
        Options(deterministic=True, inter="pycomm").resolved({})
    with_both = Options(deterministic=True, algorithm="broadcast=direct")
    create(with_both)


@pytest.mark.parametrize("name", GOOD)
def test_a_variable_sets_its_field(name: str) -> None:
    text, value = GOOD[name]
    field = VARIABLES[name][0]
    assert Options().resolved({name: text}) == {field: value}


@pytest.mark.parametrize("name", GOOD)
def test_a_field_wins_over_its_variable(name: str) -> None:
    field = VARIABLES[name][0]
    other = {"PYCOMM_SEGMENT_BYTES": 4096, "PYCOMM_TCP_CONNECTIONS": 3, "PYCOMM_CHECK_PLANS": False}
    other["PYCOMM_PORT_RANGE"] = "5000-5001"
    other |= {
        "PYCOMM_INTER": "pycomm",
        "PYCOMM_WIRE": "int8",
        "PYCOMM_DEVICE_MODE": "S",
        "PYCOMM_BLOCKING_WAIT": False,
    }
    value = other.get(name, 7.0 if name.endswith("TIMEOUT") else "shm")
    became = (5000, 5001) if name == "PYCOMM_PORT_RANGE" else value
    assert Options(**{field: value}).resolved({name: GOOD[name][0]}) == {field: became}


@pytest.mark.parametrize(("name", "value", "expected"), BAD)
def test_a_variable_that_is_not_understood_names_itself_and_what_is_expected(
    name: str, value: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(pycomm.UsageError) as caught:
        create()
    assert f"{name}={value!r}" in str(caught.value)
    assert expected in str(caught.value)


def test_nccl_is_refused_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_nccl_available", lambda: False)
    with pytest.raises(pycomm.UsageError, match=r"inter\)='nccl': this torch has no NCCL"):
        create(Options(inter="nccl"))
    monkeypatch.setattr(dist, "is_nccl_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(pycomm.UsageError, match="sees no CUDA device"):
        create(Options(inter="nccl"))


def test_a_segment_that_is_no_multiple_of_a_page_is_refused() -> None:
    with pytest.raises(pycomm.UsageError, match="5000.*expected a multiple of 4096"):
        Options().resolved({"PYCOMM_SEGMENT_BYTES": "5000"})


def test_sizes_have_units() -> None:
    parse = VARIABLES["PYCOMM_ARENA_BYTES"][1]
    sizes = {"0": 0, "100": 100, "2K": 2048, "512M": 512 << 20, "8G": 8 << 30, "1T": 1 << 40}
    assert {text: parse("PYCOMM_ARENA_BYTES", text) for text in sizes} == sizes


def test_an_unknown_algorithm_lists_those_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("circle", "all_reduce=circle", "all_sum=ring", "broadcast=ring"):
        monkeypatch.setenv("PYCOMM_ALGO", name)
        with pytest.raises(pycomm.UsageError) as caught:
            create()
        for part in (f"PYCOMM_ALGO: '{name}'", "expected", "all_reduce=ring", "broadcast=direct"):
            assert part in str(caught.value), f"no '{part}' in: {caught.value}"


def test_an_unknown_interface_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from ranks import RankError, run_threads

    monkeypatch.delenv("PYCOMM_SOCKET_IFNAME", raising=False)
    with pytest.raises(RankError, match="UsageError.*no_such_card"):
        options = {"socket_interface": "no_such_card"}
        run_threads(lambda me: None, 2, transport="tcp", options=options, timeout_s=10)


def test_an_unknown_variable_warns_and_lists_those_there_are() -> None:
    with pytest.warns(UserWarning, match="PYCOMM_ALGORITHM: no such setting.*PYCOMM_ALGO"):
        Options().resolved({"PYCOMM_ALGORITHM": "ring"})


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"transport": "rdma"}, r"Options\(transport\)='rdma': expected auto"),
        ({"detect_timeout_s": -1.0}, r"Options\(detect_timeout_s\)='-1.0': expected a number"),
        ({"timeout_s": -5.0}, r"Options\(timeout_s\)='-5.0': expected a number of seconds"),
        ({"tcp_connections": 99}, r"Options\(tcp_connections\)='99': expected an integer"),
        ({"segment_bytes": 5000}, "5000.*expected a multiple of 4096"),
        ({"check_plans": "maybe"}, r"Options\(check_plans\)='maybe': expected 0 or 1"),
    ],
)
def test_a_field_that_is_not_understood_names_itself(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(pycomm.UsageError, match=text):
        create(Options(**fields))


def test_fields_are_accepted_as_true_and_false() -> None:
    assert Options(check_plans=True).resolved({}) == {"check_plans": True}
    assert Options(check_plans=False).resolved({}) == {"check_plans": False}


@pytest.mark.parametrize("given", [{"algorithm": "ring"}, "ring", 3])
def test_options_of_another_type_are_refused_with_the_right_one_named(given: Any) -> None:
    with pytest.raises(pycomm.UsageError) as caught:
        create(given)
    assert type(given).__name__ in str(caught.value)
    assert "expected pycomm.Options or None" in str(caught.value)
    assert "pg_options=pycomm.Options(" in str(caught.value)


def test_the_backend_gets_what_the_options_say() -> None:
    made = create(
        Options(
            timeout_s=7.0,
            detect_timeout_s=0.25,
            connect_timeout_s=9.0,
            transport="tcp",
            algorithm="ring",
            tcp_connections=3,
            segment_bytes=8192,
            check_plans=True,
            flight_dir="somewhere",
            socket_interface="lo",
            port_range="40000-40003",
            host_id="node7",
        )
    )
    native = made.options
    assert (native.timeout_ms, native.detect_timeout_ms, native.connect_timeout_ms) == (
        7000,
        250,
        9000,
    )
    assert (native.transports, native.tcp_connections, native.segment_bytes) == ("tcp", 3, 8192)
    assert (native.check_plans, native.flight_dir) == (True, "somewhere")
    assert (native.socket_interface, native.host_id) == ("lo", "node7")
    assert native.port_range == (40000, 40003)
    assert made.algorithm_for("all_reduce", 8) == "ring"


def test_torchs_timeout_holds_where_the_options_name_none() -> None:
    assert create().options.timeout_ms == 10_000
    assert create(Options(timeout_s=2.5)).options.timeout_ms == 2500
