# SPDX-License-Identifier: MIT
"""The wire that delays packets, on which slow networks are measured: nothing is faster than it."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

import pytest
from network import Network

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import contextlib

from slow_wire import SlowWire

PATIENCE_S = 30


@pytest.mark.skipif(not os.access("/dev/net/tun", os.W_OK), reason="needs /dev/net/tun")
def test_bytes_arrive_whole_and_not_before_rate_and_delay_allow(network: Network) -> None:
    ends = network.hosts[0], network.hosts[1]
    delay_s, bytes_per_s = 0.02, 10e6
    sent = os.urandom(1 << 20)
    wire = SlowWire(ends, bytes_per_s, delay_s)
    try:
        listener = ends[0].namespace.call(lambda: socket.create_server((wire.address(0), 0)))
        address = listener.getsockname()[:2]
        began = time.monotonic()
        caller = ends[1].namespace.call(lambda: socket.create_connection(address, PATIENCE_S))
        connected = time.monotonic()
        with listener, caller, listener.accept()[0] as answerer:
            answerer.settimeout(PATIENCE_S)
            caller.setblocking(False)
            left, got = memoryview(sent), bytearray()
            while len(got) < len(sent):
                with contextlib.suppress(BlockingIOError):
                    left = left[caller.send(left) :] if left else left
                got += answerer.recv(1 << 16)
        ended = time.monotonic()
    finally:
        wire.close()
    assert got == sent
    assert connected - began >= 2 * delay_s
    assert ended - connected >= delay_s + len(sent) / bytes_per_s
