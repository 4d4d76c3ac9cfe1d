# SPDX-License-Identifier: MIT
"""All settings of a group and every environment variable, in one place.

A field given in Options wins over its variable, the variable over the default. All ranks of a
group need the same values, except for socket_interface, port_range, host_id and flight_dir.
"""

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any

from pycomm.errors import UsageError

_TRANSPORTS = ("shm", "tcp")
_WIRES = ("fp32", "bf16", "fp16s", "int8", "auto")
_ADDING = ("all_reduce", "reduce_scatter", "reduce")
_UNITS = {"K": 10, "M": 20, "G": 30, "T": 40}


def _text(name: str, value: str) -> str:
    return value


def _seconds(name: str, value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e9:
        raise UsageError(
            f"{name}={value!r}: expected a number of seconds, 0 or more, such as 3 or 0.5"
        )
    return seconds


def _integer(low: int, high: int) -> Callable[[str, str], int]:
    def parse(name: str, value: str) -> int:
        try:
            number = int(value)
        except ValueError:
            number = low - 1
        if not low <= number <= high:
            raise UsageError(f"{name}={value!r}: expected an integer from {low} to {high}")
        return number

    return parse


def _flag(name: str, value: str) -> bool:
    if value not in ("0", "1"):
        raise UsageError(f"{name}={value!r}: expected 0 or 1")
    return value == "1"


def _bytes(name: str, value: str) -> int:
    digits, unit = (value[:-1], value[-1]) if value[-1:] in _UNITS else (value, "")
    whole = digits.isascii() and digits.isdigit()
    if not whole or int(digits) << _UNITS.get(unit, 0) >= 1 << 47:
        raise UsageError(
            f"{name}={value!r}: expected a number of bytes, such as 8G, 512M or 1048576; 0 for none"
        )
    return int(digits) << _UNITS.get(unit, 0)


def _transports(name: str, value: str) -> str:
    names = value.split(",")
    if value == "auto":
        return ",".join(_TRANSPORTS)
    if not names or any(one not in _TRANSPORTS for one in names):
        raise UsageError(
            f"{name}={value!r}: expected auto, or a comma-separated list of "
            f"{', '.join(_TRANSPORTS)} in order of preference"
        )
    return value


def _wire(name: str, value: str) -> str:
    if value not in _WIRES:
        raise UsageError(f"{name}={value!r}: expected one of {', '.join(_WIRES)}")
    return value


def _replaced(name: str, value: str) -> tuple[str, ...]:
    from pycomm.replace import parse_names

    return parse_names(name, value)


def _port_range(name: str, value: str) -> tuple[int, int]:
    low, dash, high = value.partition("-")
    numbers = (low + high).isascii() and low.isdigit() and high.isdigit() and dash
    if not numbers or not 1 <= int(low) <= int(high) <= 65535:
        raise UsageError(
            f"{name}={value!r}: expected LOW-HIGH, two ports from 1 to 65535, such as 40000-40100"
        )
    return int(low), int(high)


def _word(name: str, value: str) -> str:
    if not value or any(one.isspace() for one in value):
        raise UsageError(f"{name}={value!r}: expected a text without spaces, such as node7")
    return value


def _device_mode(name: str, value: str) -> str:
    if value not in ("auto", "H", "S", "K"):
        raise UsageError(f"{name}={value!r}: expected auto, H, S or K")
    return value


def _inter(name: str, value: str) -> str:
    from pycomm.inter import check

    if value in ("", "none"):
        return ""
    check(name, value)
    return value


def _level(name: str, value: str) -> str:
    if value not in ("error", "warning", "info", "debug"):
        raise UsageError(f"{name}={value!r}: expected error, warning, info or debug")
    return value


# Variable to (field of Options or None when the core reads it itself, parser).
VARIABLES: Mapping[str, tuple[str | None, Callable[[str, str], Any]]] = {
    "PYCOMM_TRANSPORT": ("transport", _transports),
    "PYCOMM_ALGO": ("algorithm", _text),
    "PYCOMM_WIRE": ("wire", _wire),
    "PYCOMM_DETERMINISTIC": ("deterministic", _flag),
    "PYCOMM_DETECT_TIMEOUT": ("detect_timeout_s", _seconds),
    "PYCOMM_CONNECT_TIMEOUT": ("connect_timeout_s", _seconds),
    "PYCOMM_SOCKET_IFNAME": ("socket_interface", _text),
    "PYCOMM_PORT_RANGE": ("port_range", _port_range),
    "PYCOMM_HOST_ID": ("host_id", _word),
    "PYCOMM_TCP_CONNECTIONS": ("tcp_connections", _integer(1, 16)),
    "PYCOMM_SEGMENT_BYTES": ("segment_bytes", _integer(4096, 1 << 24)),
    "PYCOMM_CHECK_PLANS": ("check_plans", _flag),
    "PYCOMM_DEVICE_MODE": ("device_mode", _device_mode),
    "PYCOMM_INTER": ("inter", _inter),
    "PYCOMM_BLOCKING_WAIT": ("blocking_wait", _flag),
    "PYCOMM_FLIGHT_DIR": ("flight_dir", _text),
    "PYCOMM_ARENA": (None, _flag),
    "PYCOMM_ARENA_BYTES": (None, _bytes),
    "PYCOMM_LOG": (None, _level),
    "PYCOMM_CPU": (None, _text),
    "PYCOMM_REPLACE": (None, _replaced),
    "PYCOMM_KEEP_NAME": (None, _flag),
}


@dataclass(frozen=True)
class Options:
    """Settings of one group, for `init_process_group("pycomm", pg_options=Options(...))`.

    None means: the environment variable, else the default.

    Attributes:
        timeout_s: Seconds an operation may take. Default: what torch was given, 30 minutes.
        detect_timeout_s: Seconds a rank may be silent while others wait for it before it is
            declared dead; 0 never. Default 3. PYCOMM_DETECT_TIMEOUT.
        connect_timeout_s: Seconds set-up may take. Default: timeout_s. PYCOMM_CONNECT_TIMEOUT.
        transport: "auto", or a comma-separated list of shm and tcp in order of preference.
            PYCOMM_TRANSPORT.
        algorithm: "ring" or "all_reduce=ring,broadcast=direct"; default: chosen by size.
            PYCOMM_ALGO.
        wire: What float32 sums of 64 KiB and more travel as: "fp32", "bf16", "fp16s" (float16 with
            a scale for each block), "int8", or "auto", which measures. Default fp32. PYCOMM_WIRE.
        deterministic: Sums are taken in rank order whatever their size and whatever the hosts, by
            the direct algorithms, so that bits depend on nothing but the operands.
            PYCOMM_DETERMINISTIC.
        socket_interface: What tcp may use: "eth0,ib0" (names or their beginnings, the first there
            is), "10.0.0.0/8,fd00::/8" (networks), "=eth0" (that name only) or "^docker0,lo" (all
            but these). Default: the route to the store's host. PYCOMM_SOCKET_IFNAME.
        port_range: "LOW-HIGH": the ports on which tcp may listen during set-up. Default: any.
            PYCOMM_PORT_RANGE.
        host_id: Ranks that give the same text share memory, others do not. Default: found out
            from the boot and the network namespace. PYCOMM_HOST_ID.
        tcp_connections: Data connections per pair of ranks and lane, 1 to 16. Default 2.
            PYCOMM_TCP_CONNECTIONS.
        segment_bytes: Bytes of one frame's payload, a multiple of 4096. Default by world size.
            PYCOMM_SEGMENT_BYTES.
        check_plans: Prove each algorithm before its first use. PYCOMM_CHECK_PLANS.
        device_mode: How ranks exchange what is on their GPUs: "H" through memory of the host, "S"
            by streams where they share one or reach each other's, "K" by kernels where each has one
            to itself, "auto" for what fits. Default: auto. PYCOMM_DEVICE_MODE.
        inter: The backend that carries tensors on GPUs between hosts: "nccl", or another name
            that torch.distributed knows, "pycomm" for this one. all_reduce, reduce_scatter and
            all_gather then go within each host first or last, so that as little as possible
            crosses. Default: "none", one exchange among all ranks. See docs/gpu.md. PYCOMM_INTER.
        blocking_wait: Calls on a device's tensors return, synchronous ones at once and asynchronous
            ones from wait(), when they are over, so that errors are raised where they happen;
            otherwise only streams wait. PYCOMM_BLOCKING_WAIT.
        flight_dir: Folder in which a failure leaves the flight recorder's dump. PYCOMM_FLIGHT_DIR.
    """

    timeout_s: float | None = None
    detect_timeout_s: float | None = None
    connect_timeout_s: float | None = None
    transport: str | None = None
    algorithm: str | None = None
    wire: str | None = None
    deterministic: bool | None = None
    socket_interface: str | None = None
    port_range: str | None = None
    host_id: str | None = None
    tcp_connections: int | None = None
    segment_bytes: int | None = None
    check_plans: bool | None = None
    device_mode: str | None = None
    inter: str | None = None
    blocking_wait: bool | None = None
    flight_dir: str | None = None

    # DeviceMesh reads this of any pg_options it is given.
    @property
    def _timeout(self) -> timedelta | None:
        return None if self.timeout_s is None else timedelta(seconds=self.timeout_s)

    def resolved(self, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Returns every field that is set, from here or from the environment; local.

        Raises:
            UsageError: a variable or field has a value that is not understood.
        """
        environment = os.environ if environment is None else environment
        unknown = [n for n in environment if n.startswith("PYCOMM_") and not _known(n)]
        if unknown:
            warnings.warn(
                f"{', '.join(sorted(unknown))}: no such setting; "
                f"pycomm reads {', '.join(VARIABLES)}",
                stacklevel=3,
            )
        values: dict[str, Any] = {}
        for name, (field, parse) in VARIABLES.items():
            if name in environment:
                value = parse(name, environment[name])
                if field is not None:
                    values[field] = value
        for one in fields(self):
            given = getattr(self, one.name)
            if given is not None:
                values[one.name] = _check_field(one.name, given)
        if values.pop("deterministic", False):
            if values.get("inter"):
                raise UsageError(
                    f"deterministic=True with inter={values['inter']!r}: what crosses between "
                    "hosts is added host by host and not in rank order; leave one of them out"
                )
            values["algorithm"] = _in_rank_order(values.get("algorithm"))
        if values.get("segment_bytes", 0) % 4096:
            raise UsageError(
                f"segment_bytes={values['segment_bytes']}: expected a multiple of 4096 bytes"
            )
        return values


def _in_rank_order(algorithm: str | None) -> str:
    """The algorithms of deterministic sums; others may be chosen for what does not add."""
    direct = ",".join(f"{collective}=direct" for collective in _ADDING)
    if algorithm is None:
        return direct
    chosen = dict(one.partition("=")[::2] for one in algorithm.split(","))
    if any(not name or (key in _ADDING and name != "direct") for key, name in chosen.items()):
        raise UsageError(
            f"algorithm={algorithm!r} with deterministic=True: expected no other algorithm than "
            f"direct for {', '.join(_ADDING)}"
        )
    return f"{direct},{algorithm}"


def _known(name: str) -> bool:
    # Benchmarks and tests have variables of their own.
    return name in VARIABLES or name.startswith(("PYCOMM_TEST_", "PYCOMM_BENCH_", "PYCOMM_CUDA"))


def _check_field(name: str, value: Any) -> Any:
    """Holds a field to the rules of its variable."""
    for _, (field, parse) in VARIABLES.items():
        if field == name:
            return parse(
                f"Options({name})", str(int(value)) if isinstance(value, bool) else str(value)
            )
    return _seconds(f"Options({name})", str(value))
