// SPDX-License-Identifier: MIT
// What ranks tell each other while they set up their devices: cards, verdicts, file descriptors.
//
// Every call is collective over the group and goes through its engine, whose numbers it takes; a
// CommError means that the group has failed. Used by one thread during set-up.
#pragma once

#include <cstring>
#include <type_traits>
#include <vector>

#include "base/fd.h"
#include "engine/engine.h"

namespace pycomm {

class DeviceRendezvous {
 public:
  explicit DeviceRendezvous(Engine& engine) : engine_(engine) {}

  // By rank, what each gave.
  template <class Value>
  std::vector<Value> gather(const Value& mine) {
    static_assert(std::is_trivially_copyable_v<Value>);
    std::vector<Value> all(static_cast<size_t>(engine_.mesh().world_size()));
    gather_bytes(&mine, all.data(), sizeof(Value));
    return all;
  }
  // Empty when every rank has come through; else who has not and why: alike on all ranks.
  std::string agree(const Failure& mine);
  // By rank, what each passed; nothing from this rank itself. Needs unix sockets between all ranks.
  // Fails on all ranks or on none.
  Failure pass(const std::vector<int>& descriptors, std::vector<std::vector<Fd>>* passed);
  // Whether a peer has died or left, or the group has failed, which it has then.
  bool lost();

 private:
  void gather_bytes(const void* mine, void* all, size_t bytes);
  Engine& engine_;
  Liveness::Vigil vigil_;
};

}  // namespace pycomm
