// SPDX-License-Identifier: MIT
// The reduction kernels for Python: to be timed and tried out. Releases the GIL while it adds.
#pragma once

#include <pybind11/pybind11.h>

namespace pycomm {

void bind_kernels(pybind11::module_& m);

}  // namespace pycomm
