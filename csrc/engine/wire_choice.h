// SPDX-License-Identifier: MIT
// What a group's tensors travel as: the setting (PYCOMM_WIRE, Options(wire=)) and the rules for
// where it applies.
//
// Pure functions of what all ranks know, so that both ends of a link cut and encode alike; ranks
// whose settings differ are told by the signature. Any thread.
#pragma once

#include <cstddef>
#include <string>

#include "base/wire.h"
#include "engine/operation.h"
#include "engine/select.h"

namespace pycomm {

struct WireChoice {
  Wire wire = Wire::fp32;
  bool automatic = false;  // measured at set-up, see wire_race.cc; float32 until then
};

// "fp32", "bf16", "fp16s", "int8" or "auto". Throws UsageError for anything else.
WireChoice parse_wire(const std::string& text);
// What ranks tell each other at set-up. kAutoWire: this rank will race, and all others must; an
// algorithm that rounds a sum at every hop rules that out.
inline constexpr const char* kAutoWire = "auto";
std::string text_of(const WireChoice& wire, const AlgorithmChoices& choices);

// Throws UsageError when an algorithm was chosen that rounds a sum at every hop.
void check_wire(const WireChoice& wire, const AlgorithmChoices& choices);

// Whether a tensor of `bytes` may travel narrow. Of a reduce_scatter these are the bytes of all
// blocks together: blocks may differ, but all ranks hold the same ones.
bool may_narrow(Collective collective, size_t bytes);
// Also looks at dtype and op: float32, sum and avg only.
bool may_narrow(const Operation& operation);

}  // namespace pycomm
