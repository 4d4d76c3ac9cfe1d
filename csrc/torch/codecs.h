// SPDX-License-Identifier: MIT
// Codecs, error feedback and encoded gradient buckets for Python, on CPU tensors. Every call is
// local, checks dtype, device, size and layout, and releases the GIL while it works.
#pragma once

#include <pybind11/pybind11.h>

namespace pycomm {

void bind_codecs(pybind11::module_& m);

}  // namespace pycomm
