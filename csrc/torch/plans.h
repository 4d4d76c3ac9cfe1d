// SPDX-License-Identifier: MIT
// Plans for Python: print, check and cost them. With the GIL.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "base/dtype.h"

namespace pycomm {

void bind_plans(pybind11::module_& m);
// Throws UsageError naming the choices.
Collective collective_of(const std::string& name);

}  // namespace pycomm
