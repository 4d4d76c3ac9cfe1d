# SPDX-License-Identifier: MIT
"""`python -m pycomm run`: which names it rewrites, what its mistakes say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import pycomm
from pycomm.__main__ import main
from pycomm.native import load
from pycomm.replace import parse_names, rewritten

GLOO, BOTH = ("gloo",), ("gloo", "nccl")


@pytest.mark.parametrize(
    ("backend", "names", "default", "becomes"),
    [
        ("gloo", GLOO, "gloo", "pycomm"),
        ("GLOO", GLOO, "gloo", "pycomm"),
        ("nccl", GLOO, "gloo", "nccl"),
        ("nccl", BOTH, "gloo", "pycomm"),
        ("mpi", ("mpi",), "gloo", "pycomm"),
        ("ucc", ("ucc",), "gloo", "pycomm"),
        ("gloo", (), "gloo", "gloo"),
        ("pycomm", GLOO, "gloo", "pycomm"),
        ("cpu:gloo,cuda:nccl", GLOO, "gloo", "cpu:pycomm,cuda:nccl"),
        ("cpu:gloo,cuda:nccl", ("nccl",), "gloo", "cpu:gloo,cuda:pycomm"),
        ("cpu:gloo,cuda:nccl", BOTH, "gloo", "cpu:pycomm,cuda:pycomm"),
        ("cuda:NCCL, cpu: gloo", GLOO, "gloo", "cuda:nccl, cpu:pycomm"),
        ("cpu:gloo,cuda:nccl", ("mpi",), "gloo", "cpu:gloo,cuda:nccl"),
        ("undefined", GLOO, "gloo", "pycomm"),  # no name: torch would take gloo
        ("undefined", GLOO, "nccl", "undefined"),
        ("undefined", ("nccl",), "nccl", "pycomm"),
    ],
)
def test_only_the_named_backend_is_rewritten(
    backend: str, names: tuple[str, ...], default: str, becomes: str
) -> None:
    assert rewritten(backend, names, default) == becomes


def test_a_list_of_names_is_understood_in_any_case() -> None:
    assert parse_names("--replace", "Gloo, NCCL") == BOTH


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("pycomm", "pycomm takes the place of others, it cannot be replaced"),
        ("gloo,pycomm", "it cannot be replaced; name the backend that the program asks for: gloo"),
        ("glo", "'glo' is no backend that can be replaced; expected a comma-separated list of "),
        ("", "'' is no backend"),
        ("gloo,", "'' is no backend"),
    ],
)
def test_a_name_that_cannot_be_replaced_is_refused(value: str, text: str) -> None:
    with pytest.raises(pycomm.UsageError) as caught:
        parse_names("PYCOMM_REPLACE", value)
    assert f"PYCOMM_REPLACE={value!r}" in str(caught.value)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--replace", "pycomm", __file__], "pycomm run: --replace='pycomm': pycomm takes"),
        (["--replace", "glo", __file__], "'glo' is no backend that can be replaced"),
        (["--replace", "gloo", "no_such.py"], "'no_such.py': no such file; name a script"),
        (["--replace", "gloo", "-m", "no_such.part"], "'no_such.part': no such module"),
    ],
)
def test_a_wrong_command_line_says_what_is_wrong_and_runs_nothing(
    words: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *words]) == 2
    assert text in capsys.readouterr().err


def test_run_without_replace_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["run", __file__])
    assert caught.value.code == 2
    assert "required: --replace" in capsys.readouterr().err


SCRIPT = """
import sys
from pathlib import Path

import beside  # a file in the script's own folder

assert __name__ == "__main__" and Path(__file__).name == "script.py"
print(sys.argv[1:])
sys.exit(7)
"""


def test_the_program_sees_its_own_arguments_folder_and_exit_code(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "beside.py").write_text("")
    command = [sys.executable, "-m", "pycomm", "run", "--replace", "nccl", "--no-keep-name"]
    done = subprocess.run(
        [*command, str(tmp_path / "script.py"), "--replace", "x", "-m", "y"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout.strip()) == (7, "['--replace', 'x', '-m', 'y']"), done
    said = "pycomm run: nccl replaced: this pycomm was built without CUDA" in done.stderr
    assert said is not load().build_info()["cuda"]
