# SPDX-License-Identifier: MIT
"""Loads the extension module, after checking that it was built for the torch that runs."""

import json
from pathlib import Path
from types import ModuleType


def load() -> ModuleType:
    """Returns pycomm._C; local, loads it on first use.

    Raises:
        ImportError: the module is missing or was built against another torch. Loading it anyway
            would crash: c10d's classes change with every release.
    """
    import torch  # here, so that the command line can say that it is missing

    record = Path(__file__).with_name("_build.json")
    if not record.exists():
        raise ImportError(
            "pycomm's extension module is not built; run `pip install --no-build-isolation .` in "
            "its source folder, in the environment that has torch"
        )
    built_for = json.loads(record.read_text())["torch_version"]
    if _release(built_for) != _release(torch.__version__):
        raise ImportError(
            f"pycomm was built against torch {built_for} but torch {torch.__version__} is "
            "installed; rebuild it with "
            "`pip install --no-build-isolation --force-reinstall --no-deps .` in its source folder"
        )
    from pycomm import _C

    return _C


def _release(version: str) -> str:
    return version.split("+")[0]
