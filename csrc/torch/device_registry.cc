// SPDX-License-Identifier: MIT
#include "torch/device_registry.h"

#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <map>
#include <mutex>

#ifdef PYCOMM_WITH_CUDA
#include "device/cuda_device.h"
#endif

namespace py = pybind11;

namespace pycomm {
namespace {

// Never destroyed: works that are dropped at the end of the process still look here.
struct Offered {
  std::mutex mutex;
  std::map<std::pair<c10::DeviceType, c10::DeviceIndex>, Device*> devices;
  std::map<Device*, std::unique_ptr<DeviceKernels>> kernels;
  static Offered& get() {
    static auto* const one = new Offered;
    return *one;
  }
};

}  // namespace

Device* served_device(c10::Device where) {
  auto& offered = Offered::get();
  const std::lock_guard lock(offered.mutex);
  auto& known = offered.devices[{where.type(), where.index()}];
#ifdef PYCOMM_WITH_CUDA
  std::string why;  // torch has made the tensor, so it works
  if (!known && where.is_cuda()) known = open_cuda_device(where.index(), &why).release();
#endif
  return known;
}

// A device that somebody offers runs its kernels on the host, where its memory is.
const DeviceKernels& kernels_of(c10::Device where) {
#ifdef PYCOMM_WITH_CUDA
  if (where.is_cuda()) return cuda_kernels();
#endif
  Device* const device = served_device(where);
  auto& offered = Offered::get();
  const std::lock_guard lock(offered.mutex);
  auto& kernels = offered.kernels[device];
  if (!kernels) {
    kernels = host_kernels([device](void* stream, std::function<void()> work) {
      if (auto failure = device->enqueue_host(stream, std::move(work))) throw CommError(failure);
    });
  }
  return *kernels;
}

bool serves(c10::DeviceType type) {
#ifdef PYCOMM_WITH_CUDA
  if (type == c10::DeviceType::CUDA) return true;
#endif
  auto& offered = Offered::get();
  const std::lock_guard lock(offered.mutex);
  return std::any_of(offered.devices.begin(), offered.devices.end(),
                     [type](const auto& one) { return one.first.first == type && one.second; });
}

void bind_devices(py::module_& m) {
  // `device`: a capsule "pycomm.Device" around a Device* that lives as long as the process.
  m.def(
      "_serve_device",
      [](c10::Device where, const py::capsule& device) {
        PYCOMM_USAGE(std::string(device.name()) == "pycomm.Device",
                     "_serve_device: expected a capsule \"pycomm.Device\"");
        auto& offered = Offered::get();
        const std::lock_guard lock(offered.mutex);
        offered.devices[{where.type(), where.index()}] = device.get_pointer<Device>();
      },
      py::arg("where"), py::arg("device"));
}

}  // namespace pycomm
