// SPDX-License-Identifier: MIT
// One GPU as one rank sees it: streams, events, words that streams write and wait for, copies, and
// memory that other processes can map. CudaDevice is the real one, FakeDevice a GPU made of threads
// and ordinary memory, under which everything above runs in tests.
//
// Streams are void*: a cudaStream_t, or what the fake made; nullptr is the default stream. Calls
// return at once unless they say otherwise. An error is a Failure of kind `system` that names the
// call; a call that fails has done nothing. Any thread may call anything. Nothing here owns what it
// is handed; what it hands out goes back to the same Device, which must outlive it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "base/error.h"
#include "base/fd.h"

namespace pycomm {

// What set-up asks before it chooses how ranks work together.
struct DeviceFacts {
  int index = 0;       // as this process counts
  std::string name;    // "NVIDIA H200"
  std::string uuid;    // equal on two ranks exactly when they share the GPU, or the slice of it
  int processors = 0;  // multiprocessors
  size_t memory_bytes = 0;
  bool words = false;        // 64-bit stream write and wait values
  bool host_memory = false;  // host memory can be registered
  bool descriptors = false;  // ShareKind::descriptor
  bool ipc = false;          // ShareKind::ipc
  int driver = 0;            // 13000 is CUDA 13.0
};

// How device memory reaches another process. `descriptor`: virtual memory management, the handle is
// a file descriptor. `ipc`: cudaIpcMemHandle_t, which the exporting process itself cannot open.
enum class ShareKind : uint8_t { descriptor, ipc };

// Device memory that other processes can map, here or there. A value that stands for the mapping;
// ends with close_shared().
struct SharedAllocation {
  void* data = nullptr;
  size_t bytes = 0;  // at least what was asked for
  ShareKind kind = ShareKind::descriptor;
  bool imported = false;
  uint64_t token = 0;  // the device's own
};

// What travels to the other process.
struct ShareHandle {
  ShareKind kind = ShareKind::descriptor;
  size_t bytes = 0;
  Fd descriptor;                    // of `descriptor`
  std::array<std::byte, 64> ipc{};  // of `ipc`
};

// Memory of the host at its two addresses. They differ only on devices without unified addressing.
struct HostAllocation {
  void* host = nullptr;
  void* device = nullptr;
  size_t bytes = 0;
};

// One entry of word_operations(): waits until *word >= value as the signed difference, so that a
// counter may wrap; or writes it. `word` is a device address, aligned to eight bytes.
struct WordOperation {
  enum class Kind : uint8_t { write, wait } kind;
  uint64_t* word;
  uint64_t value;
};

// Asking while a capture is under way in the process is `failed`, and spoils the capture.
enum class DeviceProgress : uint8_t { done, pending, failed };

// `id` is 0 while nothing is captured, else that of the capture which the stream takes part in.
// `invalid`: the capture has met an error and will not become a graph.
struct Capture {
  uint64_t id = 0;
  bool invalid = false;
};

class Device {
 public:
  virtual ~Device() = default;
  virtual const DeviceFacts& facts() const = 0;
  // Whether it can address memory of the GPU with this uuid, its own for one. As far as can be told
  // from here: of a GPU that this process does not see only mapping its memory tells.
  virtual bool reaches(const std::string& uuid) const = 0;

  // Makes this the calling thread's current device, as launches want it; returns what was.
  virtual int enter() = 0;
  virtual void leave(int previous) = 0;

  // Streams that do not wait for the default stream.
  virtual Failure create_stream(bool high_priority, void** stream) = 0;
  virtual Failure destroy_stream(void* stream) = 0;  // its work still runs to the end
  virtual DeviceProgress query_stream(void* stream) = 0;
  // Blocks until all work of the stream is done. It has no deadline, so nothing but teardown and
  // tests may call it where a stream can wait for a word.
  virtual Failure synchronize(void* stream) = 0;

  virtual Failure create_event(bool timing, void** event) = 0;
  virtual Failure destroy_event(void* event) = 0;
  virtual Failure record(void* event, void* stream) = 0;
  // The stream goes on when the work before the event's latest record() is done; at once if there
  // was none.
  virtual Failure wait_event(void* stream, void* event) = 0;
  virtual DeviceProgress query_event(void* event) = 0;
  // Blocks; as synchronize().
  virtual Failure synchronize_event(void* event) = 0;
  virtual Failure elapsed_ms(void* begin, void* end, float* ms) = 0;

  // In order, after everything before them on the stream. A write makes that work visible to
  // whoever sees the word, in other processes and on the CPU too. A wait holds the stream, no
  // multiprocessor and no thread, until somebody writes the word: a stream, or a plain store of the
  // CPU.
  virtual Failure word_operations(void* stream, std::span<const WordOperation> operations) = 0;
  Failure write_value(void* stream, uint64_t* word, uint64_t value) {
    const WordOperation one{WordOperation::Kind::write, word, value};
    return word_operations(stream, {&one, 1});
  }
  Failure wait_value(void* stream, uint64_t* word, uint64_t value) {
    const WordOperation one{WordOperation::Kind::wait, word, value};
    return word_operations(stream, {&one, 1});
  }

  // Between any two of: device memory, imported memory, host memory that is pinned or registered.
  virtual Failure copy(void* stream, void* to, const void* from, size_t bytes) = 0;
  virtual Failure fill(void* stream, void* to, int byte, size_t bytes) = 0;
  // Runs on a thread of the device, in order with the stream; must not call a Device. Captured, it
  // runs at every replay, and is kept as long as the graph.
  virtual Failure enqueue_host(void* stream, std::function<void()> function) = 0;

  // None of the following may be called while a capture is under way anywhere in the process.
  virtual Failure allocate(size_t bytes, void** data) = 0;
  virtual Failure release(void* data) = 0;
  virtual Failure allocate_shared(ShareKind kind, size_t bytes, SharedAllocation* out) = 0;
  virtual Failure export_shared(const SharedAllocation& allocation, ShareHandle* out) = 0;
  // Maps what another process (or, with a descriptor, this one) has exported.
  virtual Failure import_shared(const ShareHandle& handle, SharedAllocation* out) = 0;
  // All importers close before the owner does.
  virtual Failure close_shared(const SharedAllocation& allocation) = 0;
  virtual Failure allocate_pinned(size_t bytes, HostAllocation* out) = 0;
  virtual Failure release_pinned(const HostAllocation& allocation) = 0;
  // Pins host memory, shared mappings too, and gives it a device address; `host` and `bytes` are
  // multiples of the page size.
  virtual Failure register_host(void* host, size_t bytes, HostAllocation* out) = 0;
  virtual Failure unregister_host(const HostAllocation& allocation) = 0;

  // Fails when the stream can take no more work, an invalid capture aside.
  virtual Failure capture_of(void* stream, Capture* out) = 0;
};

// The calling thread's current device while it lives.
class DeviceScope {
 public:
  explicit DeviceScope(Device& device) : device_(device), previous_(device.enter()) {}
  ~DeviceScope() { device_.leave(previous_); }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  Device& device_;
  const int previous_;
};

}  // namespace pycomm
