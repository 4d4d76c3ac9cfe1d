// SPDX-License-Identifier: MIT
// From a Program to the table that a GPU's interpreter reads, and the proof that it will not stall.
//
// The interpreter runs a rank's steps in order, a lane holds kLaneSlots pieces, and sends and
// receives block. Such a network is deterministic: whether it stalls does not depend on who is
// fast. So one simulated run of all ranks proves it. Pure functions, any thread.
#pragma once

#include <string>
#include <vector>

#include "engine/program.h"
#include "kernels/device_plan.h"

namespace pycomm {

// Fills `lowered`; or says why this program cannot be interpreted: it is not an all_reduce,
// broadcast or reduce of plain elements, has more than kPeersMax ranks, or does not fit the table.
std::string lower_plan(const Program& program, DevicePlan* lowered);

// Empty when the plans of all ranks (index = rank) end in order with `slots` in a lane, run
// `times` times without a pause; otherwise which rank would wait for ever, and where.
std::string check_in_order(const std::vector<DevicePlan>& plans, int slots = kLaneSlots,
                           int times = 2);

}  // namespace pycomm
