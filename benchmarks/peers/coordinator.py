# SPDX-License-Identifier: MIT
"""The coordinator's end of one contender: starts its ranks, asks them, and ends them.

A contender's command starts all its ranks. Each connects to the unix socket in PEERS_SOCKET and
then answers lines, all ranks alike:

    (connected)                      hello RANK WORLD PID VERSION
    cell COLLECTIVE DTYPE BYTES      ok, or: no REASON
    check                            wrong ELEMENTS, in the result of one call on fresh inputs
    time WARM CALLS SAMPLES          times NS NS ..., a sample each: a barrier, then CALLS calls
    end                              (leaves)

Between lines a rank sleeps in a read of the socket, never inside its library.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

END_TIMEOUT_S = 5.0
ERROR_LINES = 6


class ContenderError(Exception):
    """A rank died, fell silent or said something else than was asked; the text names it."""


@dataclass
class Rank:
    """One rank's connection."""

    connection: socket.socket
    number: int
    pid: int
    version: str
    unread: bytes = b""

    def read_line(self) -> str | None:
        """A whole line if there is one now; None: not yet. Raises EOFError at the end."""
        if b"\n" not in self.unread:
            try:
                more = self.connection.recv(1 << 20)
            except ConnectionError:
                more = b""
            if not more:
                raise EOFError
            self.unread += more
        if b"\n" not in self.unread:
            return None
        line, self.unread = self.unread.split(b"\n", 1)
        return line.decode()


@dataclass
class Running:
    """All ranks of one contender, resident until close(). Use as a context manager."""

    name: str
    command: list[str]
    world: int
    env: dict[str, str]
    start_timeout_s: float
    ranks: list[Rank] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None

    def launch(self) -> None:
        """Starts the command; does not wait."""
        self._folder = tempfile.TemporaryDirectory(prefix="peers_")
        folder = Path(self._folder.name)
        self._errors = (folder / "errors").open("w+b")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(folder / "socket"))
        self._listener.listen(self.world)
        env = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(folder),
            **self.env,
            "PEERS_SOCKET": str(folder / "socket"),
            "PEERS_FOLDER": str(folder),
        }
        self._deadline = time.monotonic() + self.start_timeout_s
        try:
            self.process = subprocess.Popen(
                self.command,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=self._errors,
                stderr=self._errors,
                start_new_session=True,  # ^C reaches the coordinator, which ends the ranks
            )
        except OSError as error:
            raise ContenderError(f"{self.name}: {error}") from error

    def connect(self) -> None:
        """Waits until all ranks have said hello."""
        self._listener.settimeout(0.1)
        while len(self.ranks) < self.world:
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                if self.process is not None and self.process.poll() is not None:
                    code = self.process.returncode
                    raise self._error(f"its command ended with code {code}") from None
                if time.monotonic() > self._deadline:
                    count = f"{len(self.ranks)} of {self.world} ranks came"
                    raise self._error(f"{count} within {self.start_timeout_s:g} s") from None
                continue
            self._greet(connection)
        self.ranks.sort(key=lambda rank: rank.number)
        if [rank.number for rank in self.ranks] != list(range(self.world)):
            raise self._error(f"ranks {[rank.number for rank in self.ranks]} came")

    def _greet(self, connection: socket.socket) -> None:
        connection.settimeout(10)
        rank = Rank(connection, -1, -1, "")
        line = None
        try:
            while line is None:
                line = rank.read_line()
        except (EOFError, TimeoutError):
            connection.close()
            raise self._error("a rank left before it said hello") from None
        words = line.split(" ", 4)
        if len(words) < 5 or words[0] != "hello" or int(words[2]) != self.world:
            connection.close()
            raise self._error(f"said {line!r}, expected a hello of one of {self.world} ranks")
        rank.number, rank.pid, rank.version = int(words[1]), int(words[3]), words[4]
        self.ranks.append(rank)

    @property
    def version(self) -> str:
        """What the library says it is."""
        return self.ranks[0].version

    def ask(self, line: str, timeout_s: float) -> list[str]:
        """Sends a line to all ranks; returns their answers by rank.

        Raises:
            ContenderError: A rank died or did not answer in time. The contender is of no use then.
        """
        data = (line + "\n").encode()
        for rank in self.ranks:
            try:
                rank.connection.sendall(data)
            except OSError:
                raise self._dead(rank, line) from None
        answers: dict[int, str] = {}
        deadline = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            for rank in self.ranks:
                selector.register(rank.connection, selectors.EVENT_READ, rank)
            while len(answers) < self.world:
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                if not ready:
                    silent = [str(r.number) for r in self.ranks if r.number not in answers]
                    who = ("rank " if len(silent) == 1 else "ranks ") + ", ".join(silent)
                    raise self._error(f"{who} did not answer {line!r} within {timeout_s:g} s")
                for key, _ in ready:
                    rank = key.data
                    try:
                        answer = rank.read_line()
                    except EOFError:
                        raise self._dead(rank, line) from None
                    if answer is not None:
                        answers[rank.number] = answer
                        selector.unregister(rank.connection)
        return [answers[number] for number in range(self.world)]

    def _dead(self, rank: Rank, line: str) -> ContenderError:
        return self._error(f"rank {rank.number} (pid {rank.pid}) died in {line!r}")

    def _error(self, what: str) -> ContenderError:
        """With the last lines that its processes printed."""
        time.sleep(0.1)  # what a dying process prints
        self._errors.flush()
        text = (Path(self._folder.name) / "errors").read_text(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()][-ERROR_LINES:]
        return ContenderError(f"{self.name}: {what}" + "".join(f"\n    {line}" for line in lines))

    def close(self, gently: bool = True) -> None:
        """Ends all ranks, by asking first if gently; leaves nothing behind. Idempotent."""
        for rank in self.ranks:
            with contextlib.suppress(OSError):
                rank.connection.sendall(b"end\n")
            rank.connection.close()
        if self.process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(END_TIMEOUT_S if gently else 0.1)
            for rank in self.ranks:
                self._kill_rank(rank)
            with contextlib.suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
        self.ranks = []
        self._listener.close()
        self._errors.close()
        self._folder.cleanup()

    def _kill_rank(self, rank: Rank) -> None:
        """Only if the pid is still that rank's: its environment names our folder."""
        marker = f"PEERS_FOLDER={self._folder.name}\0".encode()
        with contextlib.suppress(OSError):
            if marker in Path(f"/proc/{rank.pid}/environ").read_bytes():
                os.kill(rank.pid, signal.SIGKILL)
