# SPDX-License-Identifier: MIT
"""Slurm on this host alone: its daemons, with a configuration of their own, for as long as a test.

Debian's slurm-wlm and munge are enough. Nothing is left behind, and no service of the host is used.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_PATIENCE_S = 30.0
_CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
SwitchType=switch/none
NodeName={host} NodeAddr=127.0.0.1 CPUs=1 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES State=UP
"""


def missing() -> str:
    """Says what Slurm on this host lacks; "" for nothing."""
    if os.geteuid() != 0:
        return "needs root, to start Slurm's daemons"
    names = ("munged", "slurmctld", "slurmd", "srun")
    absent = [name for name in names if shutil.which(name, path=_PATH) is None]
    return f"needs {', '.join(absent)}: apt-get install slurm-wlm munge" if absent else ""


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Runs the daemons; gives the variables with which srun finds them."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    key, configuration = folder / "munge.key", folder / "slurm.conf"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    host = socket.gethostname().partition(".")[0]
    text = _CONFIGURATION.format(host=host, folder=folder, ports=_free_ports(2))
    configuration.write_text(text.lstrip())
    env = {"SLURM_CONF": str(configuration), "PATH": _PATH}
    munge = ["munged", "--foreground", "--force", f"--key-file={key}"]
    munge += [f"--{what}-file={folder}/munge.{what}" for what in ("pid", "log", "seed")]
    munge += [f"--socket={folder}/munge.socket"]
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for command in (munge, ["slurmctld", "-D"], ["slurmd", "-D"]):
            with (folder / f"{command[0]}.out").open("wb") as out:
                daemons.append(
                    subprocess.Popen(
                        command,
                        env={**os.environ, **env},
                        stdout=out,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
            if command is munge:
                _wait_for((folder / "munge.socket").exists, "munged")
        _wait_for(lambda: _is_up(env), "Slurm's node")
        yield env
    finally:
        for daemon in reversed(daemons):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(daemon.pid, signal.SIGTERM)
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(daemon.pid, signal.SIGKILL)
                daemon.wait()


def _is_up(env: dict[str, str]) -> bool:
    told = subprocess.run(
        ["sinfo", "--noheader", "--format=%T"],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=_PATIENCE_S,
    )
    return told.stdout.strip() == "idle"


def _wait_for(condition: object, what: str) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():  # type: ignore[operator]
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come up in {_PATIENCE_S:g} s")
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
