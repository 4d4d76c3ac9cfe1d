# SPDX-License-Identifier: MIT
"""What nvcc makes of the reduction kernel, checked without a GPU.

Every kernel must move 16 bytes per access and keep all it works on in registers: an indexed array
that falls into local memory would cost several times the traffic, and no correctness test would
notice.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[2] / "csrc"
WIDE_LOAD = re.compile(r"\bld\.global\.(v4\.\w?32|v2\.\w?64)\b")
WIDE_STORE = re.compile(r"\bst\.global\.(v4\.\w?32|v2\.\w?64)\b")
KERNELS = 7 * 5  # dtypes times sum, divided sum, product, min, max


def find_nvcc() -> str | None:
    """Returns the path of nvcc, on PATH or where the CUDA toolkit installs it."""
    for name in ("nvcc", "/usr/local/cuda/bin/nvcc", "/usr/local/bin/nvcc"):
        if path := shutil.which(name):
            return path
    return None


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Returns the PTX of each kernel by its mangled name."""
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("nvcc not found: the CUDA kernels cannot be compiled here")
    ptx = tmp_path_factory.mktemp("ptx") / "cuda_reduce.ptx"
    subprocess.run(
        [nvcc, "-std=c++20", "-O3", "-fmad=false", "-arch=compute_90", "-ptx", f"-I{SOURCES}",
         str(SOURCES / "kernels" / "cuda_reduce.cu"), "-o", str(ptx)],
        check=True,
    )  # fmt: skip
    parts = re.split(r"^\S*\s*\.entry\s+", ptx.read_text(), flags=re.MULTILINE)[1:]
    return {part.split("(", 1)[0].strip(): part for part in parts}


def test_every_dtype_and_operation_has_a_kernel(kernels: dict[str, str]) -> None:
    assert len(kernels) == KERNELS
    assert any("WholeIf" in name and "Sum" in name and "Keep" in name for name in kernels)


def test_every_kernel_moves_sixteen_bytes_per_access(kernels: dict[str, str]) -> None:
    for name, body in kernels.items():
        assert len(WIDE_LOAD.findall(body)) >= 8, name
        assert WIDE_STORE.search(body), name


def test_no_kernel_uses_local_memory(kernels: dict[str, str]) -> None:
    for name, body in kernels.items():
        assert ".local" not in body, name


def test_sums_are_not_contracted_into_fused_multiply_adds(kernels: dict[str, str]) -> None:
    for name, body in kernels.items():
        if "Divide" not in name:  # division itself is built from fma
            assert "fma." not in body, name
