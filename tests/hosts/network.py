# SPDX-License-Identifier: MIT
"""Hosts made of network namespaces: each with its own interfaces, addresses and host name.

      host a ... host b          host c ... host d        eth0: 10.77.0.1, ..., fd77::1, ...
        |          |               |          |           eth1: 10.78.0.1, ..., fd78::1, ...
      ==== left bridge ==trunk==== right bridge ====      one such switch for each network
               |
             store: 10.77.0.254, fd77::fe

Namespaces have no names: a descriptor of this process holds each, and ranks enter through it. So
nothing is left when this process ends, however it ends. Needs root and iproute2 (`ip`).
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

CLONE_NEWUTS = 0x04000000
CLONE_NEWNET = 0x40000000
NETWORKS = 2
DUAL_STACK_HOSTS = 4
IPV6_HOSTS = 2
_THREAD_NAMESPACE = "/proc/thread-self/ns/net"

T = TypeVar("T")
_libc = ctypes.CDLL(None, use_errno=True)


def _call(function: str, *args: Any) -> None:
    if getattr(_libc, function)(*args) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{function}: {os.strerror(error)}")


def _in_thread(function: Callable[[], T]) -> T:
    """The result of the function, called by a thread that may change its own namespace."""
    results: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def enter_host(namespace: str, name: str) -> None:
    """Moves this process, which has one thread as yet, to a host."""
    fd = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    _call("setns", fd, CLONE_NEWNET)
    os.close(fd)
    _call("unshare", CLONE_NEWUTS)
    _call("sethostname", name.encode(), len(name))


class Namespace:
    """A network namespace, with loopback up; closed with this object."""

    def __init__(self) -> None:
        self.fd = _in_thread(self._make)
        self.run("ip link set lo up")

    @staticmethod
    def _make() -> int:
        _call("unshare", CLONE_NEWNET)
        return os.open(_THREAD_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)

    @property
    def path(self) -> str:
        """Where other processes of this machine find it."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def call(self, function: Callable[[], T]) -> T:
        """The function's result; sockets that it makes are in this namespace."""

        def inside() -> T:
            _call("setns", self.fd, CLONE_NEWNET)
            return function()

        return _in_thread(inside)

    def run(self, *commands: str) -> None:
        """Runs `ip ...` commands, of which each must succeed."""
        lines = "\n".join(command.removeprefix("ip ") for command in commands)

        def batch() -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                ["ip", "-batch", "-"], input=lines, text=True, capture_output=True, timeout=30
            )

        ended = self.call(batch)
        assert ended.returncode == 0, f"{lines}\n{ended.stderr}"

    def close(self) -> None:
        os.close(self.fd)


class Host:
    """One host of a network. The ports of the switch it is plugged into are cable0, cable1."""

    def __init__(self, index: int, ipv4: bool) -> None:
        self.index = index
        self.name = f"host-{'abcdef'[index]}"
        self.namespace = Namespace()
        self.ipv4 = ipv4
        # As IPv4 addresses do, so that a card can be taken down and up again.
        # Nobody looks for duplicates: until that is over a link-local address cannot be used.
        settings = {"all/keep_addr_on_down": "1", "all/accept_dad": "0", "default/accept_dad": "0"}

        def write() -> None:
            for name, value in settings.items():
                Path("/proc/sys/net/ipv6/conf", name).write_text(value)

        self.namespace.call(write)

    def address(self, network: int = 0) -> str:
        return f"10.{77 + network}.0.{self.index + 1}"

    def address6(self, network: int = 0) -> str:
        return f"fd{77 + network}::{self.index + 1}"

    def plug(self, switch: Namespace, network: int, bridge: str) -> None:
        cable, card = f"cable{self.index}n{network}", f"eth{network}"
        switch.run(
            f"ip link add {cable} type veth peer name {card} netns {self.namespace.path}",
            f"ip link set {cable} master {bridge} up",
        )
        commands = [f"ip addr add {self.address6(network)}/64 dev {card} nodad"]
        if self.ipv4:
            commands.append(f"ip addr add {self.address(network)}/24 dev {card}")
        self.namespace.run(*commands, f"ip link set {card} up")


class Network:
    """Four hosts with IPv4 and IPv6, two with IPv6 only, a switch, and a store on the switch."""

    store_ip = "10.77.0.254"
    store_ip6 = "fd77::fe"

    def __init__(self) -> None:
        self.switch = Namespace()
        self.hosts = [
            Host(index, index < DUAL_STACK_HOSTS) for index in range(DUAL_STACK_HOSTS + IPV6_HOSTS)
        ]
        for network in range(NETWORKS):
            left, right, trunk = f"left{network}", f"right{network}", f"trunk{network}"
            self.switch.run(
                f"ip link add {left} type bridge",
                f"ip link add {right} type bridge",
                f"ip link add {trunk} type veth peer name {trunk}r",
                f"ip link set {trunk} master {left} up",
                f"ip link set {trunk}r master {right} up",
                f"ip link set {left} up",
                f"ip link set {right} up",
            )
            for host in self.hosts:
                host.plug(self.switch, network, left if host.index % 4 < 2 else right)
        self.switch.run(
            f"ip addr add {self.store_ip}/24 dev left0",
            f"ip addr add {self.store_ip6}/64 dev left0 nodad",
        )
        self.store = self.switch.call(
            lambda: dist.TCPStore(self.store_ip, 0, is_master=True, wait_for_workers=False)
        )

    def pull(self, host: Host) -> None:
        """Takes the cables out: the host's own interfaces stay up but carry nothing."""
        self._cables(host, "down")

    def plug(self, host: Host) -> None:
        self._cables(host, "up")

    def _cables(self, host: Host, state: str) -> None:
        self.switch.run(*(f"ip link set cable{host.index}n{n} {state}" for n in range(NETWORKS)))

    def split(self) -> None:
        """Parts hosts a, b from c, d. The store stays with the former."""
        self.switch.run(*(f"ip link set trunk{n} down" for n in range(NETWORKS)))

    def join(self) -> None:
        self.switch.run(*(f"ip link set trunk{n} up" for n in range(NETWORKS)))

    def close(self) -> None:
        for one in (self.switch, *(host.namespace for host in self.hosts)):
            one.close()


def why_not() -> str:
    """What keeps this machine from making namespaces; empty if nothing does."""
    if shutil.which("ip") is None:
        return "there is no `ip` (package iproute2)"
    if not Path(_THREAD_NAMESPACE).exists():
        return "the kernel has no network namespaces"
    try:
        trial = Namespace()
    except OSError as error:
        return f"{error}; it takes root (CAP_SYS_ADMIN)"
    try:
        trial.run("ip link add one type bridge", "ip link add two type veth peer name three")
    except AssertionError as error:
        return str(error).replace("\n", "; ")
    finally:
        trial.close()
    return ""
