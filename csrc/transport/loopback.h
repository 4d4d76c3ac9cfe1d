// SPDX-License-Identifier: MIT
// Channels inside one process and one thread: for simulation and tests.
//
// Both ends of a pair share two bounded queues without locks or clocks, so a test can step all
// ranks in any order and get the same run again. Single-threaded. Each end keeps the queues alive.
#pragma once

#include <functional>
#include <memory>
#include <utility>

#include "transport/channel.h"

namespace pycomm {

// Says which memory frames may refer to, whichever end sends.
using LoopbackReach = std::function<bool(const std::byte* data, size_t bytes)>;

// Two ends of one connection. `slots` frames fit in each direction.
std::pair<std::unique_ptr<Channel>, std::unique_ptr<Channel>> make_loopback_pair(
    int slots, size_t segment_bytes, const LoopbackReach& reach = {});

}  // namespace pycomm
