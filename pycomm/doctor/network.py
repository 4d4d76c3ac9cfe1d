# SPDX-License-Identifier: MIT
"""Network interfaces with their addresses, and which of them tcp would use; local."""

from __future__ import annotations

import fcntl
import ipaddress
import os
import socket
import struct
import threading
from pathlib import Path
from typing import Any

from pycomm.doctor.problems import Problem, broken

SIOCGIFADDR = 0x8915
IFF_UP = 1
NAME_BYTES = 16  # IFNAMSIZ
RESOLVE_TIMEOUT_S = 5.0


def describe(loads: bool) -> tuple[dict[str, Any], list[Problem]]:
    """Returns the interfaces and the choice among them; may wait some seconds for a name server.

    Args:
        loads: The extension module can be asked.
    """
    wanted = os.environ.get("PYCOMM_SOCKET_IFNAME", "")
    host = os.environ.get("MASTER_ADDR", "")
    facts: dict[str, Any] = {
        "interfaces": [_interface(name) for _, name in socket.if_nameindex()],
        "master_addr": host or None,
        "master_addr_resolves_to": None,
        "chosen": None,
        "why": None,
    }
    problems = []
    if host:
        address, error = resolve(host, RESOLVE_TIMEOUT_S)
        facts["master_addr_resolves_to"] = address
        if address is None:
            remedy = "name a host that this machine can look up, or give its IP address"
            problems.append(broken(f"MASTER_ADDR={host}: {error}", remedy))
            host = ""
    if not loads:
        facts["why"] = "not known: the extension module does not load"
        return facts, problems
    from pycomm.native import load

    try:
        name, ip = load().choose_interface(wanted, host)
    except Exception as error:  # the text is the core's, with the interfaces there are
        remedy = "correct PYCOMM_SOCKET_IFNAME, or unset it"
        problems.append(broken(str(error), remedy))
        return facts, problems
    facts["chosen"] = {"name": name, "ip": ip}
    if wanted:
        facts["why"] = f"PYCOMM_SOCKET_IFNAME={wanted}"
    elif host:
        facts["why"] = f"the route to MASTER_ADDR={host}"
    else:
        facts["why"] = "the first that is up and not loopback; MASTER_ADDR is not set"
    return facts, problems


def resolve(host: str, timeout_s: float) -> tuple[str | None, str]:
    """Returns (address, "") or (None, what went wrong); waits timeout_s at the most."""
    answer: list[tuple[str | None, str]] = []

    def ask() -> None:
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            answer.append((str(found[0][4][0]), ""))
        except OSError as error:
            answer.append((None, f"cannot be looked up: {error.strerror or error}"))

    # getaddrinfo has no timeout of its own.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(timeout_s)
    return answer[0] if answer else (None, f"no answer from the name server in {timeout_s:g} s")


def _interface(name: str) -> dict[str, Any]:
    place = Path("/sys/class/net") / name
    flags = _read(place / "flags")
    speed = _read(place / "speed")
    return {
        "name": name,
        "up": bool(int(flags, 16) & IFF_UP) if flags else None,
        "mtu": int(_read(place / "mtu") or 0) or None,
        "speed_mbit": int(speed) if speed and speed.isdigit() else None,
        "addresses": [*_ipv4(name), *_ipv6(name)],
    }


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):  # speed cannot be read of interfaces that are down
        return None


def _ipv4(name: str) -> list[str]:
    """The interface's first IPv4 address, if it has one."""
    request = struct.pack(f"{NAME_BYTES}s240x", name.encode()[: NAME_BYTES - 1])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            answer = fcntl.ioctl(asking.fileno(), SIOCGIFADDR, request)
        except OSError:
            return []
    return [socket.inet_ntoa(answer[20:24])]


def _ipv6(name: str) -> list[str]:
    lines = (_read(Path("/proc/net/if_inet6")) or "").splitlines()
    fields = [line.split() for line in lines]
    return [str(ipaddress.IPv6Address(int(one[0], 16))) for one in fields if one[5] == name]
