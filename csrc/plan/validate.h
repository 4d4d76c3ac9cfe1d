// SPDX-License-Identifier: MIT
// The part of `check` that looks at one step at a time: does it name things that exist and may be
// used that way? Pure; any thread.
#pragma once

#include <cstddef>
#include <string>

#include "plan/meaning.h"
#include "plan/plan.h"

namespace pycomm {

// Empty when every plan and every step is well formed.
std::string validate(const PlanSet& plans);

// "rank 1 step 4 (recv work[1] from 0)"
std::string describe(const Plan& plan, size_t step);

// The piece that a chunk is, or is as large as; kToken for a token.
int piece_of(const Plan& plan, const Meaning& meaning, ChunkRef chunk);

}  // namespace pycomm
