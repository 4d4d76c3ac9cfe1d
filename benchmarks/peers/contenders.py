# SPDX-License-Identifier: MIT
"""Who takes part, how its ranks are started, and what it needs to be there."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / "build" / "peers"  # what install.py makes: a folder for each library, and bin/

# Ranks pin themselves (rank modulo cores) before they start their library, so no launcher may.
HYDRA = {"HYDRA_LAUNCHER": "fork", "HYDRA_BINDING": "none"}
INTEL = {
    "I_MPI_FABRICS": "shm",
    "I_MPI_HYDRA_BOOTSTRAP": "fork",
    "I_MPI_PIN": "0",
}
OPEN_MPI = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_plm": "isolated",
    "OMPI_MCA_btl": "self,sm",
}


@dataclass(frozen=True)
class Contender:
    """A library in one setting.

    Attributes:
        name: Unique; what the command line and the results call it.
        command: With {world}, {peers} and {python}; starts all ranks.
        language: What the ranks are written in: like is compared with like.
        needs: Paths under PEERS without which it is absent.
        library: Folder under PEERS that it was installed into, put on the library path.
        env: More environment variables.
        crowded_env: Those that differ where there are more ranks than cores.
        python_path: Folder under PEERS with a Python package.
    """

    name: str
    command: str
    language: str = "C++"
    needs: tuple[str, ...] = ()
    library: str = ""
    env: dict[str, str] = field(default_factory=dict)
    crowded_env: dict[str, str] = field(default_factory=dict)
    python_path: str = ""

    def missing(self, peers: Path = PEERS) -> str:
        """Why it cannot take part; empty: it can."""
        for need in self.needs:
            if not (peers / need).exists():
                return f"{need} is not installed; run make bench-peers"
        return ""

    def command_for(self, world: int, peers: Path = PEERS) -> list[str]:
        """The words of its command."""
        places = {"world": str(world), "peers": str(peers), "python": sys.executable}
        return [word.format(**places) for word in shlex.split(self.command)]

    def env_for(self, world: int, peers: Path = PEERS) -> dict[str, str]:
        """Its environment variables, library path included."""
        env = dict(self.env)
        if world > len(os.sched_getaffinity(0)):
            env.update(self.crowded_env)
        if self.python_path:
            env["PYTHONPATH"] = str(peers / self.python_path)
        if self.library:
            folder = peers / self.library
            libraries = [str(folder / "lib"), os.environ.get("LD_LIBRARY_PATH", "")]
            env["LD_LIBRARY_PATH"] = ":".join(path for path in libraries if path)
            # Where they look for their own files; only one of them matters to each.
            env.update(dict.fromkeys(("I_MPI_ROOT", "OPAL_PREFIX", "CCL_ROOT"), str(folder)))
        return env


def _mpi(
    name: str, library: str, options: str, env: dict[str, str], program: str = ""
) -> Contender:
    program = f"bin/{program or 'mpi_rank_' + library}"
    launcher = f"{library}/bin/mpiexec"
    command = f"{{peers}}/{launcher} {options} -n {{world}} {{peers}}/{program}"
    return Contender(name, command, needs=(launcher, program), library=library, env=env)


def _own(name: str, program: str, option: str = "") -> Contender:
    command = f"{{peers}}/bin/{program} {{world}} {option}"
    return Contender(name, command, needs=(f"bin/{program}",))


def _torch(name: str, backend: str) -> Contender:
    script = Path(__file__).with_name("torch_rank.py")
    return Contender(name, f"{{python}} {script} {backend} {{world}}", language="Python, torch")


def _mpi4py(name: str, library: str, options: str, env: dict[str, str]) -> Contender:
    launcher = f"{library}/bin/mpiexec"
    script = Path(__file__).with_name("array_rank.py")
    command = f"{{peers}}/{launcher} {options} -n {{world}} {{python}} {script} mpi4py"
    one = Contender(name, command, "Python, NumPy", (launcher, "mpi4py"), library, env)
    return replace(one, python_path="mpi4py")


def known() -> list[Contender]:
    """All contenders, in the order of the tables."""
    return [
        _own("ideal", "ideal_rank"),
        _own("pycomm", "core_rank"),
        _own("pycomm_arena", "core_rank", "arena"),
        _mpi("impi", "impi", "", {**HYDRA, **INTEL}),
        _mpi("impi13", "impi", "", {**HYDRA, **INTEL, "I_MPI_ADJUST_ALLREDUCE": "13"}),
        _mpi("openmpi", "openmpi", "--oversubscribe --bind-to none", OPEN_MPI),
        _mpi("mpich", "mpich", "", HYDRA),
        replace(
            # Its own threads make progress by default, and each of them takes a rank's core.
            _mpi(
                "oneccl", "oneccl", "", {**HYDRA, **INTEL, "CCL_WORKER_OFFLOAD": "0"}, "oneccl_rank"
            ),
            crowded_env={
                "CCL_WORKER_OFFLOAD": "1",
                "CCL_SPIN_COUNT": "1",
                "CCL_YIELD": "sched_yield",
            },
        ),
        Contender(
            "numpy_pycomm",
            f"{{python}} {Path(__file__).with_name('array_rank.py')} pycomm {{world}}",
            language="Python, NumPy",
        ),
        _mpi4py("numpy_impi", "impi", "", {**HYDRA, **INTEL}),
        _mpi4py("numpy_openmpi", "openmpi", "--oversubscribe --bind-to none", OPEN_MPI),
        _torch("torch_pycomm", "pycomm"),
        replace(_torch("torch_pycomm_arena", "pycomm"), env={"PYCOMM_ARENA": "1"}),
        _torch("torch_gloo", "gloo"),
        # Gloo's own threads share the core of a pinned rank; so it is also measured without.
        replace(_torch("torch_gloo_unpinned", "gloo"), env={"PEERS_PIN": "0"}),
    ]


def extra(text: str) -> Contender:
    """NAME=COMMAND of a program of yours that speaks the protocol of coordinator.py."""
    name, equals, command = text.partition("=")
    if not equals or not name.isidentifier() or not command:
        raise ValueError(f"{text!r}: expected NAME=COMMAND, with {{world}} in the command")
    return Contender(name, command, language="")


def choose(names: list[str], extras: list[Contender]) -> list[Contender]:
    """The named ones (empty: all), and the extra ones."""
    everyone = known()
    unknown = set(names) - {one.name for one in everyone}
    if unknown:
        expected = ", ".join(one.name for one in everyone)
        raise ValueError(f"unknown contenders {sorted(unknown)}; expected some of {expected}")
    return [one for one in everyone if not names or one.name in names] + extras
