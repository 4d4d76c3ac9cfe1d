# SPDX-License-Identifier: MIT
"""One network for all tests of this folder, and a word about which kind it was."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from host_ranks import Places
from network import Network, why_not

# Collectives are called and checked as they are there.
sys.path.append(str(Path(__file__).resolve().parents[1] / "collectives"))

_ran: list[str] = []


@pytest.fixture(scope="session")
def reason() -> str:
    """Why there are no network namespaces here; empty if there are."""
    why = why_not()
    _ran.append(
        f"loopback with made-up hosts, because {why}"
        if why
        else "network namespaces with their own addresses and host names"
    )
    return why


@pytest.fixture(scope="session")
def places(reason: str) -> Iterator[Places]:
    """Ranks on hosts, whatever kind of hosts this machine allows."""
    network = None if reason else Network()
    made = Places(network)
    yield made
    made.close()
    if network is not None:
        network.close()


@pytest.fixture
def network(places: Places, reason: str) -> Network:
    """The hosts and their cables; skips where there are only made-up hosts."""
    if places.network is None:
        pytest.skip(f"needs network namespaces: {reason}")
    return places.network


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Says over what the tests of several hosts ran."""
    for line in dict.fromkeys(_ran):
        terminalreporter.write_line(f"tests/hosts ran over {line}")
