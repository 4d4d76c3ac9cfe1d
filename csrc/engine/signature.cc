// SPDX-License-Identifier: MIT
#include "engine/signature.h"

#include "base/error.h"

namespace pycomm {

std::string to_string(const OpSignature& s) {
  if (s.collective == Collective::barrier) return "barrier()";
  std::string text = str(name_of(s.collective), "(", name_of(s.dtype), "[", s.count, "]");
  if (s.codec != Wire::fp32) text += str(" as ", name_of(s.codec));
  if (is_reduction(s.collective)) text += str(", ", name_of(s.op));
  if (is_rooted(s.collective)) text += str(", root ", s.root);
  if (s.collective == Collective::send || s.collective == Collective::recv) {
    text += str(", tag ", s.root);
  }
  return text + ")";
}

uint32_t digest(const OpSignature& signature) {
  uint32_t hash = 2166136261u;
  for (const auto byte : std::bit_cast<std::array<uint8_t, sizeof signature>>(signature)) {
    hash = (hash ^ byte) * 16777619u;
  }
  return hash;
}

namespace {

// Ranks that disagree about the format mostly use different algorithms, too.
bool same_but_for_codec(const OpSignature& mine, OpSignature theirs) {
  if (mine.codec == theirs.codec) return false;
  theirs.codec = mine.codec;
  theirs.plan = mine.plan;
  return mine == theirs;
}

}  // namespace

std::string explain_mismatch(const OpSignature& mine, const OpSignature& theirs, int rank,
                             int peer) {
  const bool ordered = mine.sequence == theirs.sequence;
  const auto number = [&](const OpSignature& s) { return ordered ? "" : str(" #", s.sequence); };
  const std::string text = str("rank ", peer, " called ", to_string(theirs), number(theirs),
                               ", but rank ", rank, " expected ", to_string(mine), number(mine));
  if (ordered && to_string(mine) == to_string(theirs)) {
    return text +
           " by another algorithm; PYCOMM_ALGO and the group's options must be the same on all "
           "ranks";
  }
  if (ordered && same_but_for_codec(mine, theirs)) {
    return text + "; PYCOMM_WIRE and Options(wire=) must be the same on all ranks";
  }
  return text +
         "; check that all ranks call the same collectives in the same order with the same "
         "shapes, dtypes, ops and roots";
}

}  // namespace pycomm
