// SPDX-License-Identifier: MIT
// What a plan costs: latency steps, bytes, and predicted time in the alpha-beta-gamma model
// (Thakur, Rabenseifner, Gropp 2005). Pure; any thread.
#pragma once

#include <cstddef>

#include "plan/plan.h"

namespace pycomm {

struct LinkCost {
  double alpha_s = 0;           // one message, seconds
  double beta_s_per_byte = 0;   // moving one byte
  double gamma_s_per_byte = 0;  // reducing one byte
};

struct PlanCost {
  int steps = 0;                 // messages on the longest chain of dependent messages
  size_t bytes_sent_max = 0;     // by the busiest rank
  size_t bytes_reduced_max = 0;  // by the busiest rank
  double seconds = 0;            // longest chain of alpha, plus bytes of the busiest rank
};

// `bytes` is the size of the whole tensor for all_reduce, broadcast and reduce, and of one rank's
// block for the others.
PlanCost cost(const PlanSet& plans, size_t bytes, const LinkCost& link);

}  // namespace pycomm
