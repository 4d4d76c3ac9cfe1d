// SPDX-License-Identifier: MIT
// A group of GPUs made of threads: every rank has a stream, every block of a kernel a thread, and
// at each atomic access a block may give up its core for a while, as a seed decides.
#pragma once

#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "device_memory.h"
#include "kernels/device_peers.h"
#include "kernels/host_env.h"

namespace device_peers {
namespace {

using namespace pycomm;
using device_memory::Aligned;

// Long enough for any thread that is kept from running; an error, not a result, ends it.
constexpr uint64_t kPatienceNs = 20'000'000'000;

class SeededEnv : public HostEnv {
 public:
  SeededEnv(size_t block, size_t blocks, int threads, uint64_t seed)
      : HostEnv(block, blocks, threads), random_(static_cast<uint32_t>(seed)) {}

  uint64_t load_acquire(const uint64_t* from) const {
    return stagger(), HostEnv::load_acquire(from);
  }
  void store_release(uint64_t* to, uint64_t value) const {
    stagger();
    HostEnv::store_release(to, value);
  }
  uint32_t load_relaxed(const uint32_t* from) const {
    return stagger(), HostEnv::load_relaxed(from);
  }
  void store_relaxed(uint32_t* to, uint32_t value) const {
    stagger();
    HostEnv::store_relaxed(to, value);
  }
  uint32_t fetch_add(uint32_t* to, uint32_t value) const {
    return stagger(), HostEnv::fetch_add(to, value);
  }

 private:
  void stagger() const {
    const auto draw = random_() % 64;
    if (draw == 0) std::this_thread::sleep_for(std::chrono::microseconds(50));
    if (draw < 16) std::this_thread::yield();
  }
  mutable std::minstd_rand random_;
};

// Runs a kernel's blocks as threads and returns when all are done; a stream does nothing else.
// `blocks_max`: the kernel may ask for more.
struct ThreadedLaunch {
  uint64_t seed;
  size_t blocks_max = kPeerBlocksMax;
  int threads = 8;
  template <class Body>
  int exactly(const Body& body, size_t blocks, void*) const {
    blocks = std::min(blocks, blocks_max);
    std::vector<std::thread> all;
    for (size_t block = 0; block < blocks; ++block) {
      all.emplace_back([&, block] { body(SeededEnv(block, blocks, threads, seed + 31 * block)); });
    }
    for (auto& thread : all) thread.join();
    return 0;
  }
};

class World {
 public:
  World(int ranks, size_t slots_bytes, size_t buffer_bytes, size_t lanes_bytes = 0)
      : controls_(static_cast<size_t>(ranks)) {
    group_.world_size = ranks;
    group_.slots_bytes = slots_bytes;
    group_.buffer_bytes = buffer_bytes;
    group_.lanes_bytes = lanes_bytes;
    group_.timeout_ns = kPatienceNs;
    for (int r = 0; r < ranks; ++r) {
      flags_.push_back(std::make_unique<PeerFlags>());
      for (size_t bytes : {slots_bytes, buffer_bytes, lanes_bytes}) {
        memory_.push_back(std::make_unique<Aligned>(bytes));
      }
      group_.flags[r] = flags_.back().get();
      group_.slots[r] = memory_[memory_.size() - 3]->data();
      group_.buffers[r] = memory_[memory_.size() - 2]->data();
      group_.lanes[r] = memory_[memory_.size() - 1]->data();
    }
  }

  int size() const { return group_.world_size; }
  PeerFlags& flags(int rank) { return *group_.flags[rank]; }
  PeerControl& control(int rank) { return controls_[static_cast<size_t>(rank)]; }
  PeerFault fault(int rank) { return unpack_fault(control(rank).status); }
  char* buffer(int rank) { return group_.buffers[rank]; }
  void set_timeout_ns(uint64_t ns) { group_.timeout_ns = ns; }
  PeerGroup group(int rank) {
    PeerGroup mine = group_;
    mine.rank = rank;
    mine.control = &control(rank);
    return mine;
  }

  // As if the group had lived for almost 2^32 points, pieces and calls.
  void age(uint32_t by) {
    for (int r = 0; r < size(); ++r) {
      PeerFlags& mine = flags(r);
      mine.calls = by;
      for (int b = 0; b < kPeerBlocksMax; ++b) {
        mine.epochs[b] = by;
        for (int peer = 0; peer < kPeersMax; ++peer) {
          mine.arrived[b][peer] = mine.sent[b][peer] = mine.taken[b][peer] = by;
          mine.lane_sent[b][peer] = mine.lane_taken[b][peer] = by;
        }
      }
    }
  }

  // Every rank's calls in order, ranks beside one another.
  void run(const std::vector<std::function<void(int rank)>>& calls) {
    std::vector<std::thread> streams;
    for (int rank = 0; rank < size(); ++rank) {
      streams.emplace_back([&calls, rank] {
        for (const auto& call : calls) call(rank);
      });
    }
    for (auto& stream : streams) stream.join();
  }

 private:
  PeerGroup group_;
  std::vector<std::unique_ptr<PeerFlags>> flags_;
  std::vector<std::unique_ptr<Aligned>> memory_;
  std::vector<PeerControl> controls_;
};

}  // namespace
}  // namespace device_peers
