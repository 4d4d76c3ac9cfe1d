# SPDX-License-Identifier: MIT
"""Prints what CMake must know of the installed torch, as one CMake list."""

import sysconfig

import torch
from torch.utils.cpp_extension import TORCH_LIB_PATH, include_paths

facts = [
    torch.__version__,
    sysconfig.get_config_var("EXT_SUFFIX"),
    TORCH_LIB_PATH,
    *include_paths(),
    sysconfig.get_paths()["include"],
]
print(";".join(facts))
