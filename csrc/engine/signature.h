// SPDX-License-Identifier: MIT
// What all ranks must agree on about one operation. It rides in the header of every frame, and the
// receiver compares it with its own before it uses the payload: a mismatch costs no extra message.
// A value; thread-safe.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <string>

#include "base/dtype.h"
#include "base/wire.h"

namespace pycomm {

struct OpSignature {
  uint64_t sequence = 0;  // number of the collective in its group, or of the message on its lane
  uint64_t count = 0;  // elements of the tensor; of the block that travels, where ranks hold blocks
  int32_t root = 0;    // root of rooted collectives, tag of point-to-point messages
  Collective collective = Collective::all_reduce;
  ReduceOp op = ReduceOp::sum;
  DType dtype = DType::float32;
  Wire codec = Wire::fp32;  // fp32: as whatever the tensor holds
  uint32_t plan = 0;        // hash of the algorithm's name and chunking
  uint32_t epoch = 0;       // incarnation of the group

  bool operator==(const OpSignature&) const = default;
  std::array<uint64_t, 4> pack() const { return std::bit_cast<std::array<uint64_t, 4>>(*this); }
  static OpSignature unpack(const std::array<uint64_t, 4>& words) {
    return std::bit_cast<OpSignature>(words);
  }
};
static_assert(sizeof(OpSignature) == 32);

inline bool is_reduction(Collective collective) {
  return collective == Collective::all_reduce || collective == Collective::reduce ||
         collective == Collective::reduce_scatter;
}
inline bool is_rooted(Collective collective) {
  return collective == Collective::broadcast || collective == Collective::reduce ||
         collective == Collective::gather || collective == Collective::scatter;
}
// Collectives whose chunks are one rank's blocks, so that `count` is a block's.
inline bool moves_blocks(Collective collective) {
  return collective == Collective::all_gather || collective == Collective::gather ||
         collective == Collective::scatter || collective == Collective::reduce_scatter ||
         collective == Collective::all_to_all;
}

// "all_reduce(float32[1024], sum)", "broadcast(int64[3], root 2)", "send(float32[8], tag 0)"
std::string to_string(const OpSignature& signature);
uint32_t digest(const OpSignature& signature);  // FNV-1a of all fields
// The sentence for a mismatch that `rank` found in a frame from `peer`. It reads the same on every
// rank.
std::string explain_mismatch(const OpSignature& mine, const OpSignature& theirs, int rank,
                             int peer);

}  // namespace pycomm
