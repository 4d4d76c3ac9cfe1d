// SPDX-License-Identifier: MIT
// Recursive doubling and recursive halving-doubling (Thakur, Rabenseifner, Gropp 2005): partners at
// distances 1, 2, 4, .. so log2 p rounds. Pure functions; any thread.
//
// Off powers of two the first 2(p - 2^k) ranks pair up: the even one gives its tensor to the odd
// one and sits out, the odd one returns the result. The 2^k that remain are renumbered in rank
// order, so every partial sum still covers neighbouring ranks.
#pragma once

#include "plan/builder.h"
#include "plan/plan.h"

namespace pycomm {

Plan recursive_doubling_all_reduce(const Place& place);  // 1 chunk, whole tensor each round
Plan halving_doubling_all_reduce(const Place& place);    // 2^k chunks, half as many each round

}  // namespace pycomm
