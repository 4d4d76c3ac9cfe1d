// SPDX-License-Identifier: MIT
// Which instructions of a program work on encoded chunks: what a narrow wire format adds to a plan.
//
// A sum is narrowed once, where it is complete: the fold that completes a chunk encodes it and
// holds what the encoding decodes to, as every other rank will. The encoding, the chunk's *image*,
// is what the rank then sends, and a rank that passes a received chunk on sends the very bytes it
// received. Anything else that is sent, a contribution or a partial sum, is encoded on its way into
// the channel and stays here as it was. Pure functions; any thread.
#pragma once

#include <vector>

#include "kernels/codec.h"

namespace pycomm {

struct Instruction;

// How far a program's chunks travel encoded: to and from the marked peers.
struct NarrowLinks {
  const Codec* codec = nullptr;  // none: nowhere
  std::vector<bool> peers;       // by rank

  bool to(int peer) const { return codec && peers[static_cast<size_t>(peer)]; }
};

// Marks instructions as `narrow`, and those that make, keep or send an image as `image`.
void mark_narrow(std::vector<Instruction>& instructions, const NarrowLinks& links);

}  // namespace pycomm
