// SPDX-License-Identifier: MIT
// What `python -m pycomm doctor` asks the core about this machine and build. With the GIL.
#pragma once

#include <pybind11/pybind11.h>

namespace pycomm {

void bind_doctor(pybind11::module_& m);

}  // namespace pycomm
