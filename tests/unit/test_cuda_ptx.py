# SPDX-License-Identifier: MIT
"""What nvcc makes of the kernels, checked without a GPU.

Every kernel must move 16 bytes per access and keep all it works on in registers: an indexed array
that falls into local memory would cost several times the traffic, and no correctness test would
notice. PTX shows the accesses, ptxas the registers and what it spills; where nvdisasm is found, in
the toolkit or from `pip install nvidia-cuda-nvdisasm`, the machine's instructions are read too.
"""

import importlib.util
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

# On a machine that is busy with other things the compiler takes minutes.
pytestmark = pytest.mark.timeout(900)

SOURCES = Path(__file__).resolve().parents[2] / "csrc"
WIDE_LOAD = re.compile(r"\bld\.(?:relaxed\.gpu\.)?global\.(v4\.\w?32|v2\.\w?64)\b")
WIDE_STORE = re.compile(r"\bst\.global\.(v4\.\w?32|v2\.\w?64)\b")
UNROLLED_SOURCES = 8


@dataclass
class Kernel:
    """One kernel as PTX, what ptxas says of it for sm_90, and its instructions if known."""

    ptx: str
    sass: str | None
    registers: int
    stack_bytes: int
    spill_bytes: int


def find_nvcc() -> str | None:
    """Returns the path of nvcc, on PATH or where the CUDA toolkit installs it."""
    for name in ("nvcc", "/usr/local/cuda/bin/nvcc", "/usr/local/bin/nvcc"):
        if path := shutil.which(name):
            return path
    return None


def find_nvdisasm() -> str | None:
    """Returns the path of nvdisasm: on PATH, from the toolkit or from the package on PyPI."""
    packages = importlib.util.find_spec("nvidia")
    folders = list(packages.submodule_search_locations or []) if packages else []
    found = [str(path) for folder in folders for path in Path(folder).glob("cu*/bin/nvdisasm")]
    for name in ("nvdisasm", "/usr/local/cuda/bin/nvdisasm", *found):
        if path := shutil.which(name):
            return path
    return None


def instructions(cubin: Path) -> dict[str, str]:
    """Returns the machine's instructions of each kernel; none where nvdisasm is not found."""
    nvdisasm = find_nvdisasm()
    if nvdisasm is None:
        return {}
    text = subprocess.run([nvdisasm, cubin], check=True, capture_output=True, text=True).stdout
    parts = re.split(r"^\.text\.(\S+):$", text, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def compile_kernels(nvcc: str, source: Path, folder: Path) -> dict[str, Kernel]:
    """Returns the kernels of a .cu file by their mangled names."""
    ptx = folder / f"{source.stem}.ptx"
    subprocess.run(
        [nvcc, "-std=c++20", "-O3", "-fmad=false", "-arch=compute_90", "-ptx", f"-I{SOURCES}",
         str(source), "-o", str(ptx)],
        check=True,
    )  # fmt: skip
    beside = Path(nvcc).resolve().parent / "ptxas"
    ptxas = str(beside) if beside.exists() else "ptxas"
    cubin = folder / f"{source.stem}.cubin"
    report = subprocess.run(
        [ptxas, "-arch=sm_90", "-v", str(ptx), "-o", str(cubin)],
        check=True, capture_output=True, text=True,
    ).stderr  # fmt: skip
    parts = re.split(r"^\S*\s*\.entry\s+", ptx.read_text(), flags=re.MULTILINE)[1:]
    sass = instructions(cubin)
    bodies = {part.split("(", 1)[0].strip(): part for part in parts}
    kernels = {}
    for part in report.split("Compiling entry function '")[1:]:
        numbers = re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part
        )
        registers = re.search(r"Used (\d+) registers", part)
        assert numbers and registers, part
        stack, stores, loads = map(int, numbers.groups())
        name = part.split("'", 1)[0]
        kernels[name] = Kernel(
            bodies[name], sass.get(name), int(registers[1]), stack, stores + loads
        )
    assert set(kernels) == set(bodies)
    return kernels


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Kernel]]:
    """Returns the kernels of each .cu file that has any."""
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("nvcc not found: the CUDA kernels cannot be compiled here")
    folder = tmp_path_factory.mktemp("ptx")
    sources = sorted((SOURCES / "kernels").glob("*.cu"))
    with ThreadPoolExecutor(2) as pool:
        compiled = pool.map(lambda source: compile_kernels(nvcc, source, folder), sources)
        return {
            source.stem: kernels
            for source, kernels in zip(sources, compiled, strict=True)
            if kernels
        }


@pytest.fixture(scope="module")
def kernels(files: dict[str, dict[str, Kernel]]) -> dict[str, Kernel]:
    """Returns all kernels by name."""
    return {name: kernel for group in files.values() for name, kernel in group.items()}


def test_every_element_type_has_a_reduction(files: dict[str, dict[str, Kernel]]) -> None:
    # Eight integers, booleans, nine floats, and products of three complex types.
    assert len(files["cuda_reduce"]) == 8 + 1 + 9 + 3


def test_every_kernel_moves_sixteen_bytes_per_access(kernels: dict[str, Kernel]) -> None:
    for name, kernel in kernels.items():
        assert WIDE_LOAD.search(kernel.ptx), name
        assert WIDE_STORE.search(kernel.ptx), name


def test_sums_have_the_loads_of_all_sources_in_flight(files: dict[str, dict[str, Kernel]]) -> None:
    for element in ("WholeIf", "WholeId", "HalfElement", "Bfloat16Element", "WholeIi", "WholeIl"):
        bodies = [
            kernel.ptx
            for name, kernel in files["cuda_reduce"].items()
            if f"{element}" in name and "Complex" not in name
        ]
        assert bodies, element
        assert len(WIDE_LOAD.findall(bodies[0])) >= UNROLLED_SOURCES, element


def test_no_kernel_uses_local_memory(kernels: dict[str, Kernel]) -> None:
    for name, kernel in kernels.items():
        assert ".local" not in kernel.ptx, name
        assert kernel.stack_bytes == kernel.spill_bytes == 0, name


def test_registers_leave_room_for_the_blocks_that_hide_latency(
    files: dict[str, dict[str, Kernel]],
) -> None:
    # Of 65536 a multiprocessor: four, six and one block of the sizes that the bodies ask for.
    ceilings = {
        "cuda_reduce": 65536 // (4 * 256),
        "cuda_codec": 65536 // (4 * 256),
        "cuda_pack": 65536 // (6 * 256),
        "cuda_all_reduce": 65536 // 512,
        "cuda_plan": 65536 // 512,
    }
    assert set(files) == set(ceilings)
    for group, ceiling in ceilings.items():
        for name, kernel in files[group].items():
            assert kernel.registers <= ceiling, (name, kernel.registers)


def test_flags_are_read_with_acquire_and_written_with_release(
    files: dict[str, dict[str, Kernel]],
) -> None:
    for group in ("cuda_all_reduce", "cuda_plan"):
        for name, kernel in files[group].items():
            assert "ld.acquire.sys.global.u64" in kernel.ptx, name
            assert "st.release.sys.global.u64" in kernel.ptx, name
            assert "trap;" not in kernel.ptx, name
            assert "%globaltimer" in kernel.ptx, name
            # A barrier before a release: it speaks for all threads of its block.
            released = kernel.ptx.index("st.release.sys.global.u64")
            assert "bar.sync" in kernel.ptx[:released], name


def test_the_machine_does_as_ptx_says(files: dict[str, dict[str, Kernel]]) -> None:
    if find_nvdisasm() is None:
        pytest.skip("nvdisasm not found: pip install nvidia-cuda-nvdisasm")
    for group, kernels in files.items():
        for name, kernel in kernels.items():
            assert kernel.sass, name
            assert "LDG.E.128" in kernel.sass, name
            assert "STG.E.128" in kernel.sass, name
            assert not re.search(r"\b(LDL|STL)\b", kernel.sass), name
            if group not in ("cuda_all_reduce", "cuda_plan"):
                continue
            # A load with acquire drops what the first-level cache holds; a store with release waits
            # for all that was written before.
            assert re.search(r"LDG\.E\.64\.STRONG\.SYS.*?CCTL\.IVALL", kernel.sass, re.DOTALL), name
            assert re.search(
                r"MEMBAR\.ALL\.SYS.*?STG\.E\.64\.STRONG\.SYS", kernel.sass, re.DOTALL
            ), name


def test_sums_are_not_contracted_into_fused_multiply_adds(kernels: dict[str, Kernel]) -> None:
    for name, kernel in kernels.items():
        assert "fma." not in kernel.ptx, name
