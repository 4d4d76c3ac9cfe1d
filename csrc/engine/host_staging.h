// SPDX-License-Identifier: MIT
// Mode H: operations on a device's memory by way of the host. It serves every collective, dtype and
// placement of ranks, since the engine does the exchange as ever, in pinned memory.
//
// On the stream: copy in, write `ready`, wait for `done`, copy back, write `consumed`. The engine
// does not touch the memory before `ready` and writes `done` when the operation is finished,
// however it ended, so a failure releases the stream. No host thread waits for a device. Large
// tensors go in pieces through two blocks, which the stream itself uses in turn: the memory is
// bounded however far the host runs ahead, and while one piece is exchanged the next is copied in.
//
// The caller holds one lock over prepare(), the submission of the operations and enqueue(), and
// puts collectives only on streams that are ordered one behind the other. The device outlives this.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "device/device.h"
#include "engine/operation.h"

namespace pycomm {

// An operation whose regions are device memory. The engine never gets it, but what stage() makes.
struct DeviceOperation : Operation {
  DeviceOperation() { on_device = true; }
  struct Use {
    bool reads = false, writes = false;
  };
  std::vector<Use> uses;         // by region
  std::optional<double> factor;  // of premul_sum: what goes in is multiplied by it
};

// Pinned memory with the words that the stream and the engine tell each other by.
class StagingBlock;

// Has the stream done with what was staged? Plain loads, any thread.
class StagingUse {
 public:
  StagingUse(std::shared_ptr<StagingBlock> block, uint64_t number, bool copies_back)
      : block_(std::move(block)), number_(number), copies_back_(copies_back) {}
  bool over() const;

 private:
  friend class HostStaging;
  std::shared_ptr<StagingBlock> block_;
  uint64_t number_;
  bool copies_back_;
};

class HostStaging {
 public:
  struct Copy {
    std::byte* device;
    std::byte* host;
    size_t bytes;
    DeviceOperation::Use use;
  };
  struct Piece {
    std::shared_ptr<Operation> operation;  // on host memory; for Engine::submit()
    std::vector<Copy> copies;
    StagingUse use;
  };
  using Pieces = std::vector<Piece>;

  HostStaging(Device& device, int world_size) : device_(device), world_size_(world_size) {}
  // Waits a short while for the streams; memory that one of them may still use then stays for ever.
  ~HostStaging();
  HostStaging(const HostStaging&) = delete;
  HostStaging& operator=(const HostStaging&) = delete;

  // Throws CommError when pinned memory cannot be had.
  Pieces prepare(const DeviceOperation& wanted);
  // For pieces from `first` on, which were not submitted: as if they had ended.
  void abandon(const Pieces& pieces, size_t first);
  // After all pieces have been submitted.
  Failure enqueue(const Pieces& pieces, void* stream);

  // Pinned memory held, in bytes. Under the caller's lock.
  size_t bytes() const;

 private:
  std::shared_ptr<StagingBlock> block_for(bool message, size_t bytes);
  Failure copy_in(const Piece& piece, void* stream);
  Failure copy_back(const Piece& piece, void* stream);

  Device& device_;
  const int world_size_;
  std::shared_ptr<StagingBlock> turns_[2];  // of collectives
  size_t turn_ = 0;
  std::vector<StagingUse> last_;  // of each block, all that there are
};

}  // namespace pycomm
