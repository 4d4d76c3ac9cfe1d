// SPDX-License-Identifier: MIT
#include "engine/narrow.h"

#include <algorithm>

#include "engine/program.h"

namespace pycomm {
namespace {

using Kind = Instruction::Kind;

// Marks the sends over narrow links of what instruction `index` has put into its target.
bool mark_sends_of(std::vector<Instruction>& all, size_t index) {
  bool any = false;
  const int chunk = all[index].target;
  for (size_t j = index + 1; j < all.size() && !writes(all[j], chunk); ++j) {
    if (all[j].kind != Kind::send || all[j].target != chunk || !all[j].narrow) continue;
    all[j].image = any = true;
  }
  return any;
}

}  // namespace

void mark_narrow(std::vector<Instruction>& instructions, const NarrowLinks& links) {
  if (!links.codec) return;
  for (Instruction& one : instructions) {
    if (one.kind == Kind::send || one.kind == Kind::recv) one.narrow = links.to(one.peer);
    if (one.kind != Kind::fold) continue;
    one.narrow = std::any_of(one.operands.begin(), one.operands.end(),
                             [&](int peer) { return links.to(peer); });
  }
  for (size_t i = 0; i < instructions.size(); ++i) {
    Instruction& one = instructions[i];
    const bool whole_sum = one.kind == Kind::fold && one.completes;
    if (whole_sum || (one.kind == Kind::recv && one.narrow)) {
      one.image = mark_sends_of(instructions, i);
      one.narrow |= one.image;
    }
  }
}

}  // namespace pycomm
