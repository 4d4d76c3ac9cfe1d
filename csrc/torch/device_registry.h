// SPDX-License-Identifier: MIT
// Which devices of torch pycomm can work on, and as what: CUDA's by itself, others when somebody
// offers them. Any thread; devices live as long as the process.
#pragma once

#include <c10/core/Device.h>
#include <pybind11/pybind11.h>

#include "device/device.h"
#include "kernels/device_kernels.h"

namespace pycomm {

// Null: tensors there cannot be served.
Device* served_device(c10::Device where);
// What launches on it; of a device that is served.
const DeviceKernels& kernels_of(c10::Device where);
// Whether there can be one for some device of this type, so that tensors of it are no mistake.
bool serves(c10::DeviceType type);

void bind_devices(pybind11::module_& m);

}  // namespace pycomm
