// SPDX-License-Identifier: MIT
// A GPU for tests: its streams are threads, its memory is ordinary memory of the host, shared with
// other processes through memfds. It keeps CUDA's rules where breaking them would break on CUDA:
// no allocation and no question during a capture, no import of one's own IPC handle, no peer's
// memory without peer access.
//
// Device addresses are host addresses, so kernels are host functions given to enqueue_host().
// Destroying it gives up waits that nobody ended. Otherwise as Device says.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

#include "device/device.h"
#include "device/fake_capture.h"

namespace pycomm {

struct FakeOptions {
  std::string uuid = "FAKE-0";  // devices with the same are the same GPU
  bool words = true, host_memory = true, descriptors = true, ipc = true;
  bool peer_access = true;  // memory of other fake GPUs can be imported
  int processors = 64;
  size_t memory_bytes = size_t{1} << 32;
  uint64_t seed = 1;  // of the delays
  int delay_us = 0;   // at most, before one task in four
  // All streams take their work from one queue, in the order of the calls, as with
  // CUDA_DEVICE_MAX_CONNECTIONS=1: one that waits holds the others.
  bool one_queue = false;

  // "uuid=A,words=0,delay_us=200;uuid=B": a device for each part between semicolons. Throws
  // UsageError that names what it cannot read.
  static std::vector<FakeOptions> parse(const std::string& text);
};

class FakeDevice final : public Device {
 public:
  explicit FakeDevice(FakeOptions options = {}, int index = 0);
  ~FakeDevice() override;

  // As cudaStreamBeginCapture and what follows it. A replay runs on `stream` alone.
  Failure begin_capture(void* stream);
  Failure end_capture(void* stream, std::shared_ptr<const FakeGraph>* out);
  Failure replay(const FakeGraph& graph, void* stream);

  // The call after `calls` more fails with `text`, once; for tests of what then happens.
  void fail_after(int calls, std::string text);
  // Streams, events and allocations, registrations and imports that nobody has given back.
  size_t live() const;
  size_t used_bytes() const;

  const DeviceFacts& facts() const override { return facts_; }
  bool reaches(const std::string& uuid) const override {
    return uuid == options_.uuid || options_.peer_access;
  }
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
  enum class Call { any, not_while_capturing };
  Failure begin(const char* call, Call kind = Call::any);
  FakeStream* find(void* stream);
  std::shared_ptr<FakeEvent> event_of(void* event) const;
  Failure enqueue(const char* call, void* stream, FakeTask task);
  void release_all();
  Failure keep_shared(const char* call, Fd fd, size_t bytes, SharedAllocation* out);

  const FakeOptions options_;
  DeviceFacts facts_;
  mutable std::mutex mutex_;
  std::unique_ptr<FakeStream> default_stream_;
  std::map<void*, std::unique_ptr<FakeStream>> streams_;
  std::vector<std::unique_ptr<FakeStream>> retired_;
  std::map<void*, std::shared_ptr<FakeEvent>> events_;
  std::map<void*, size_t> memory_;  // device memory, its bytes
  std::map<void*, Fd> shared_;      // allocated and imported; the descriptor of the memory
  std::map<void*, size_t> pinned_, registered_;
  std::set<FakeCapture*> captures_;
  uint64_t streams_made_ = 0;
  size_t used_bytes_ = 0;
  int calls_until_failure_ = -1;
  std::string failure_text_;
};

}  // namespace pycomm
