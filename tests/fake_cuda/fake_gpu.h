// SPDX-License-Identifier: MIT
// The fake GPU as a torch device: pycomm's FakeDevice behind PrivateUse1, so that everything which
// is written for CUDA tensors runs on a torch without CUDA.
//
// Tensors lie in ordinary memory, and all work on them is put on streams, which are threads: who
// forgets to wait for a stream reads what was there before. Memory that is freed is given to the
// next who allocates on the same stream and overwritten there first, so who lets go of a tensor
// that another stream still uses reads garbage. The devices belong to this module and live as long
// as the process; the stream is the calling thread's current one unless it is named.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/Stream.h>

#include <functional>

#include "device/fake_device.h"

namespace fake_gpu {

int device_count();
pycomm::FakeDevice& device(c10::DeviceIndex index);
c10::DeviceIndex current_device();
// What c10 calls a stream, as the device knows it.
void* native(const c10::Stream& stream);
c10::Stream current_stream(c10::DeviceIndex index);
// Throws what a failure says.
void check(const pycomm::Failure& failure);
// Puts work on the current stream of a device.
void launch(c10::DeviceIndex index, std::function<void()> work);
// Blocks until the current stream of a device has done what it was given.
void finish(c10::DeviceIndex index);

}  // namespace fake_gpu
