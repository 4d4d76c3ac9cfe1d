// SPDX-License-Identifier: MIT
#include "engine/wire_choice.h"

#include "base/error.h"
#include "base/limits.h"

namespace pycomm {

WireChoice parse_wire(const std::string& text) {
  if (text == kAutoWire) return {Wire::fp32, true};
  for (const Wire wire : {Wire::fp32, Wire::bf16, Wire::fp16s, Wire::int8}) {
    if (text == name_of(wire)) return {wire, false};
  }
  throw UsageError(
      str("PYCOMM_WIRE: '", text, "' is no wire format; choose fp32, bf16, fp16s, int8 or auto"));
}

namespace {

// A choice that rules narrow formats out, "all_reduce=ring"; empty: none does.
std::string ruled_out_by(const AlgorithmChoices& choices) {
  for (const auto collective : {Collective::all_reduce, Collective::reduce_scatter}) {
    const auto chosen = choices.find(collective);
    if (chosen == choices.end() || can_narrow(chosen->second)) continue;
    return str(name_of(collective), "=", chosen->second);
  }
  return {};
}

}  // namespace

std::string text_of(const WireChoice& wire, const AlgorithmChoices& choices) {
  if (!wire.automatic) return std::string(name_of(wire.wire));
  const auto choice = ruled_out_by(choices);
  return choice.empty() ? kAutoWire : str("fp32 for PYCOMM_ALGO=", choice);
}

void check_wire(const WireChoice& wire, const AlgorithmChoices& choices) {
  if (wire.wire == Wire::fp32) return;
  const auto choice = ruled_out_by(choices);
  if (choice.empty()) return;
  throw UsageError(str("PYCOMM_WIRE=", name_of(wire.wire), " with PYCOMM_ALGO=", choice,
                       ": that algorithm passes sums on from rank to rank and would round them "
                       "at every hop; choose direct or hierarchical, leave the choice of ",
                       choice.substr(0, choice.find('=')), " out, or use PYCOMM_WIRE=fp32"));
}

bool may_narrow(Collective collective, size_t bytes) {
  return bytes >= kNarrowBytesMin &&
         (collective == Collective::all_reduce || collective == Collective::reduce_scatter);
}

bool may_narrow(const Operation& operation) {
  if (operation.dtype != DType::float32 || operation.work.empty()) return false;
  if (operation.op != ReduceOp::sum && operation.op != ReduceOp::avg) return false;
  size_t count = operation.work[0].count;
  if (operation.collective == Collective::reduce_scatter) {
    for (size_t i = 1; i + 1 < operation.work.size(); ++i) count += operation.work[i].count;
  }
  return may_narrow(operation.collective, count * sizeof(float));
}

}  // namespace pycomm
