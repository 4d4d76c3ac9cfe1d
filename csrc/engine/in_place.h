// SPDX-License-Identifier: MIT
// Which answers may be written straight into the memory of the peer that waits for them.
//
// A rank that sends a chunk to a peer and next touches that chunk by receiving it from the same
// peer does not care where the answer is made: its send is marked `answered`. A fold into a chunk
// that is then sent to ranks whose operands it read may write the sum into their memory as well:
// it is marked with these sends. Both ends number the chunks of an in-place collective alike, so
// the two marks meet. Pure functions on instructions; used when a program is built.
#pragma once

#include <vector>

#include "engine/program.h"

namespace pycomm {

void mark_answers(std::vector<Instruction>& instructions);

}  // namespace pycomm
