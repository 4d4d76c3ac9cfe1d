// SPDX-License-Identifier: MIT
// Binds BucketReducer and what else pycomm/data_parallel.py needs of C++. With the GIL.
#pragma once

#include <pybind11/pybind11.h>

namespace pycomm {

void bind_buckets(pybind11::module_& m);

}  // namespace pycomm
