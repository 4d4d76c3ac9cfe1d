// SPDX-License-Identifier: MIT
// A channel that misbehaves on request, around any other: for tests of what faults look like.
//
// Faults are counted in frames, not in time, so a run can be repeated exactly. Single-threaded like
// the side it wraps; owns the wrapped channel.
#pragma once

#include <cstdint>
#include <memory>

#include "transport/channel.h"

namespace pycomm {

struct FaultPlan {
  static constexpr uint64_t kNever = ~uint64_t{0};
  uint64_t drop_frame = kNever;     // this frame is committed but never arrives
  uint64_t corrupt_frame = kNever;  // one payload byte of this frame is flipped
  uint64_t cut_before_frame =
      kNever;  // committing this frame throws peer_failure, and all later ones
  uint64_t signal_before_frame = kNever;  // committing this frame first raises `signal`, once
  int signal = 0;
  uint64_t delay_every = 0;  // only every n-th try_reserve and try_peek gets through
};

std::unique_ptr<Channel> make_faulty(std::unique_ptr<Channel> inner, FaultPlan faults,
                                     int peer_rank);

}  // namespace pycomm
