# SPDX-License-Identifier: MIT
"""torch.fakegpu: the fake GPU as a torch device, for tests of what is written for CUDA tensors.

    load()                                  # once per process; builds the extension when needed
    x = torch.ones(4, device="fakegpu")
    with torch.fakegpu.stream(torch.fakegpu.Stream()): ...

PYCOMM_TEST_FAKE_GPUS says which devices there are, as FakeOptions::parse reads it: by default one.
Loading is for good and changes what torch believes of the process (it has an accelerator now), so
tests load it in rank processes of their own.
"""

import contextlib
import fcntl
import importlib.machinery
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

NAME = "fakegpu"
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / f"fake_cuda-{torch.__version__}-py{sys.version_info.minor}"


def build() -> Path:
    """Builds the extension where its sources changed, in another process; returns its path."""
    subprocess.run([sys.executable, __file__], check=True, cwd=ROOT)
    return BUILD / f"{NAME}_extension.so"


def _compile() -> None:
    from torch.utils.cpp_extension import load

    BUILD.mkdir(parents=True, exist_ok=True)
    core = [
        *sorted((ROOT / "csrc" / "device").glob("fake_*.cc")),
        ROOT / "csrc" / "base" / "error.cc",
    ]
    # torch's own lock outlives a process that is killed while it builds; the kernel's does not.
    with open(BUILD / "building", "w") as building:
        fcntl.flock(building, fcntl.LOCK_EX)
        (BUILD / "lock").unlink(missing_ok=True)
        load(
            f"{NAME}_extension",
            [str(path) for path in [*sorted(HERE.glob("*.cc")), *core]],
            extra_include_paths=[str(ROOT / "csrc"), str(HERE)],
            extra_cflags=["-std=c++20", "-O1", "-fvisibility=hidden", "-Wno-attributes"],
            build_directory=str(BUILD),
            is_python_module=False,
        )


def load(path: Path | None = None) -> ModuleType:
    """Makes "fakegpu" a device of this process's torch; returns torch.fakegpu. Idempotent."""
    if hasattr(torch, NAME):
        return torch.fakegpu
    path = path or build()
    loader = importlib.machinery.ExtensionFileLoader(f"{NAME}_extension", str(path))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    extension = importlib.util.module_from_spec(spec)
    torch.utils.rename_privateuse1_backend(NAME)
    loader.exec_module(extension)
    module = _device_module(extension)
    torch._register_device_module(NAME, module)
    torch.utils.generate_methods_for_privateuse1_backend()
    _serve_pycomm(extension)
    return module


def _serve_pycomm(extension: Any) -> None:
    """What an installation with CUDA does by itself."""
    import torch.distributed as dist

    from pycomm.native import load as load_native
    from pycomm.registration import register

    register()
    dist.Backend.backend_capability["pycomm"].append(NAME)
    native = load_native()
    for index in range(extension.device_count()):
        native._serve_device(torch.device(NAME, index), extension.capsule(index))


def _index(device: Any) -> int:
    if device is None:
        return torch.fakegpu.current_device()
    if isinstance(device, int):
        return device
    index = torch.device(device).index
    return torch.fakegpu.current_device() if index is None else index


def _device_module(extension: Any) -> ModuleType:
    module = ModuleType(f"torch.{NAME}", __doc__)

    class Stream(torch.Stream):
        def __new__(cls, device: Any = None, priority: int = 0, **given: Any) -> "Stream":
            if not given:
                given = {"device": torch.device(NAME, _index(device)), "priority": priority}
            return super().__new__(cls, **given)

    class Event(torch.Event):
        def __new__(cls, enable_timing: bool = False, **given: Any) -> "Event":
            return super().__new__(cls, device=NAME, enable_timing=enable_timing)

    def synchronize(device: Any = None) -> None:
        extension.synchronize(_index(device))

    def current_stream(device: Any = None) -> torch.Stream:
        return torch.accelerator.current_stream(torch.device(NAME, _index(device)))

    def stream(on: torch.Stream | None) -> Any:
        return contextlib.nullcontext() if on is None else _Current(on)

    class _Current:
        def __init__(self, on: torch.Stream):
            self.on = on

        def __enter__(self) -> None:
            self.before = current_stream(self.on.device)
            torch.accelerator.set_stream(self.on)

        def __exit__(self, *_: Any) -> None:
            torch.accelerator.set_stream(self.before)

    @contextlib.contextmanager
    def device(index: Any) -> Any:
        before = extension.current_device()
        extension.set_device(_index(index))
        yield
        extension.set_device(before)

    @contextlib.contextmanager
    def graph(captured: Any) -> Any:
        captured.capture_begin()
        try:
            yield
        finally:
            captured.capture_end()

    for one in (Stream, Event, synchronize, current_stream, stream, device, graph):
        setattr(module, one.__name__, one)
    module.Graph = extension.Graph
    module.device_count = extension.device_count
    module.current_device = extension.current_device
    module.set_device = lambda index: extension.set_device(_index(index))
    module.sleep_ms = extension.sleep_ms
    module.fail_after = extension.fail_after
    module.is_available = lambda: extension.device_count() > 0
    module.is_initialized = lambda: True
    module.is_bf16_supported = lambda: True
    module._is_in_bad_fork = lambda: False
    module._lazy_init = lambda: None
    module.manual_seed = module.manual_seed_all = lambda seed: None
    module.get_rng_state = lambda device=NAME: torch.empty(0, dtype=torch.uint8)
    module.set_rng_state = lambda state, device=NAME: None
    module.get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]
    return module


if __name__ == "__main__":
    _compile()
