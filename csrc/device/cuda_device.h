// SPDX-License-Identifier: MIT
// A GPU of NVIDIA as a Device. In builds with nvcc only (PYCOMM_WITH_CUDA); the rest of the library
// reaches it through open_cuda_device(), which answers on machines without a driver too.
//
// Uses the primary context of the device, the one PyTorch uses. Never resets it, and runs no kernel
// of its own. Otherwise as Device says.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "device/device.h"

namespace pycomm {

// nullptr, and in `why` the reason as a sentence: no driver, no GPU, no such index.
std::unique_ptr<Device> open_cuda_device(int index, std::string* why);

class CudaDevice final : public Device {
 public:
  // `unreachable`: the uuids of those GPUs seen here whose memory this one cannot address.
  CudaDevice(DeviceFacts facts, std::vector<std::string> unreachable)
      : facts_(std::move(facts)), unreachable_(std::move(unreachable)) {}

  const DeviceFacts& facts() const override { return facts_; }
  bool reaches(const std::string& uuid) const override;
  int enter() override;
  void leave(int previous) override;
  Failure create_stream(bool high_priority, void** stream) override;
  Failure destroy_stream(void* stream) override;
  DeviceProgress query_stream(void* stream) override;
  Failure synchronize(void* stream) override;
  Failure create_event(bool timing, void** event) override;
  Failure destroy_event(void* event) override;
  Failure record(void* event, void* stream) override;
  Failure wait_event(void* stream, void* event) override;
  DeviceProgress query_event(void* event) override;
  Failure synchronize_event(void* event) override;
  Failure elapsed_ms(void* begin, void* end, float* ms) override;
  Failure word_operations(void* stream, std::span<const WordOperation> operations) override;
  Failure copy(void* stream, void* to, const void* from, size_t bytes) override;
  Failure fill(void* stream, void* to, int byte, size_t bytes) override;
  Failure enqueue_host(void* stream, std::function<void()> function) override;
  Failure allocate(size_t bytes, void** data) override;
  Failure release(void* data) override;
  Failure allocate_shared(ShareKind kind, size_t bytes, SharedAllocation* out) override;
  Failure export_shared(const SharedAllocation& allocation, ShareHandle* out) override;
  Failure import_shared(const ShareHandle& handle, SharedAllocation* out) override;
  Failure close_shared(const SharedAllocation& allocation) override;
  Failure allocate_pinned(size_t bytes, HostAllocation* out) override;
  Failure release_pinned(const HostAllocation& allocation) override;
  Failure register_host(void* host, size_t bytes, HostAllocation* out) override;
  Failure unregister_host(const HostAllocation& allocation) override;
  Failure capture_of(void* stream, Capture* out) override;

 private:
  // Both clear the error that the runtime keeps, so that it is nobody else's.
  Failure check(const char* call, int error) const;         // cudaError_t
  Failure check_driver(const char* call, int error) const;  // CUresult
  Failure map(uint64_t handle, size_t bytes, SharedAllocation* out);

  const DeviceFacts facts_;
  const std::vector<std::string> unreachable_;
};

}  // namespace pycomm
