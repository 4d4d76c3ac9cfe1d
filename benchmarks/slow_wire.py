# SPDX-License-Identifier: MIT
"""A long, slow wire between two hosts, for kernels that cannot delay packets themselves (netem).

Each host gets a TUN device, `wire0`, and a process of its own carries packets between the two: it
sends them one after the other at the wire's rate, and hands each over when the delay has passed.
Packets that would wait longer than `QUEUE_S` for the wire are dropped, as a switch would. Large
packets stay in one piece on their way (virtio's header says how the kernel would have cut them), so
that carrying them costs little; the wire's time is charged for the headers of all their parts.

Makes two hosts of tests/hosts/network.py its ends; needs /dev/net/tun.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from network import Host

CARD = "wire0"
MTU = 1500
QUEUE_S = 0.05
# Ethernet's header, checksum, preamble and gap, and the headers of IP and TCP with time stamps.
FRAME_BYTES, HEADER_BYTES = 38, 52

TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6 = 1, 2, 4
VNET_HEADER = struct.Struct("=BBHHHH")  # flags, kind, header bytes, bytes of a part, checksum
PACKET_BYTES_MAX = VNET_HEADER.size + 65536


class SlowWire:
    """A wire between two hosts, there until it is closed or this process ends."""

    def __init__(self, ends: tuple[Host, Host], bytes_per_s: float, delay_s: float) -> None:
        """Plugs it in on both ends."""
        cards = [_plug(host, self.address(at)) for at, host in enumerate(ends)]
        what = [str(one) for one in (*cards, bytes_per_s, delay_s)]
        self._carrier = subprocess.Popen([sys.executable, __file__, *what], pass_fds=cards)
        for card in cards:
            os.close(card)

    @staticmethod
    def address(end: int) -> str:
        """Where host 0 or 1 is reached over this wire."""
        return f"10.79.0.{end + 1}"

    def close(self) -> None:
        """Unplugs it: the devices end with the process that holds them."""
        self._carrier.kill()
        self._carrier.wait(timeout=10)


def _plug(host: Host, address: str) -> int:
    """Makes the host's card; returns its descriptor."""

    def inside() -> int:
        card = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR
        fcntl.ioctl(card, TUNSETIFF, struct.pack("16sH22x", CARD.encode(), flags))
        fcntl.ioctl(card, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6)
        return card

    card = host.namespace.call(inside)
    host.namespace.run(
        f"ip addr add {address}/24 dev {CARD}", f"ip link set {CARD} mtu {MTU} txqueuelen 10000 up"
    )
    return card


class _Direction:
    """Packets on their way from one card to the other."""

    def __init__(self, source: int, target: int, bytes_per_s: float, delay_s: float) -> None:
        self.source, self.target = source, target
        self._bytes_per_s, self._delay_s = bytes_per_s, delay_s
        self._free_at = 0.0  # when the wire has sent all it was given
        self._under_way: deque[tuple[float, bytes]] = deque()

    def take(self) -> None:
        """Puts all that waits at the source onto the wire."""
        while True:
            try:
                packet = os.read(self.source, PACKET_BYTES_MAX)
            except BlockingIOError:
                return
            now = time.monotonic()
            if self._free_at - now > QUEUE_S:
                continue
            _, _, _, part_bytes, _, _ = VNET_HEADER.unpack_from(packet)
            payload = len(packet) - VNET_HEADER.size
            parts = max(1, -(-payload // part_bytes)) if part_bytes else 1
            on_wire = payload + parts * FRAME_BYTES + (parts - 1) * HEADER_BYTES
            self._free_at = max(now, self._free_at) + on_wire / self._bytes_per_s
            self._under_way.append((self._free_at + self._delay_s, packet))

    def hand_over(self) -> float:
        """Gives the target what has arrived; seconds until more will."""
        while self._under_way:
            due, packet = self._under_way[0]
            left = due - time.monotonic()
            if left > 0:
                return left
            with contextlib.suppress(OSError):  # the card is down: the packet is lost
                os.write(self.target, packet)
            self._under_way.popleft()
        return 1.0


def carry(cards: tuple[int, int], bytes_per_s: float, delay_s: float) -> None:
    """Carries packets both ways until the process is killed, or its parent ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    ways = [
        _Direction(cards[end], cards[1 - end], bytes_per_s, delay_s) for end in range(len(cards))
    ]
    while True:
        left_s = min(way.hand_over() for way in ways)
        ready, _, _ = select.select(cards, [], [], left_s)
        for way in ways:
            if way.source in ready:
                way.take()


if __name__ == "__main__":
    carry((int(sys.argv[1]), int(sys.argv[2])), float(sys.argv[3]), float(sys.argv[4]))
