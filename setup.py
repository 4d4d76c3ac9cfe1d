# SPDX-License-Identifier: MIT
"""Drives CMake, which describes the build, and packages the result."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def need(module: str, hint: str) -> None:
    """Ends with one clear sentence when the build cannot work."""
    try:
        __import__(module)
    except ImportError as error:
        sys.exit(f"pycomm: {module} is needed to build and cannot be imported ({error}); {hint}")


def tool(name: str) -> str:
    """The path of a build tool: from this environment first, then from PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        sys.exit(f"pycomm: {name} was not found; pip install {name}")
    return found


class CMakeBuild(build_ext):
    """Builds pycomm._C with CMake and ninja."""

    def build_extension(self, ext: Extension) -> None:
        """Configures, builds, and copies the module to where setuptools wants it."""
        need("torch", "install torch first, then pip install --no-build-isolation .")
        import torch

        build = ROOT / "build" / f"torch-{torch.__version__}-{sys.implementation.cache_tag}"
        build.mkdir(parents=True, exist_ok=True)
        configure = [tool("cmake"), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"]
        configure += ["-S", str(ROOT), "-B", str(build), f"-DPYTHON={sys.executable}"]
        configure += ["-DPYCOMM_TORCH=ON", f"-DPYCOMM_CUDA={os.environ.get('PYCOMM_CUDA', 'AUTO')}"]
        subprocess.run(configure, check=True)
        subprocess.run([tool("cmake"), "--build", str(build), "--target", "_C"], check=True)
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(build / self.get_ext_filename("_C"), target)
        # Read before the module is loaded: a module for another torch may crash rather than fail.
        record = json.dumps({"torch_version": torch.__version__}) + "\n"
        (target.parent / "_build.json").write_text(record)
        if self.inplace or getattr(self, "editable_mode", False):
            (ROOT / "pycomm" / "_build.json").write_text(record)


setup(ext_modules=[Extension("pycomm._C", [])], cmdclass={"build_ext": CMakeBuild})
