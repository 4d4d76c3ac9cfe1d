// SPDX-License-Identifier: MIT
#include "engine/in_place.h"

#include <algorithm>

namespace pycomm {
namespace {

using Kind = Instruction::Kind;

bool touches(const Instruction& one, int chunk) { return reads(one, chunk) || writes(one, chunk); }

// Marks the send at `index` and the recv that brings its answer. What touched the chunk last before
// must have written it: another reader might still be reading when the peer writes.
void mark_send(std::vector<Instruction>& all, size_t index) {
  Instruction& send = all[index];
  for (size_t j = index; j-- > 0;) {
    if (!touches(all[j], send.target)) continue;
    if (!writes(all[j], send.target)) return;
    break;
  }
  for (size_t j = index + 1; j < all.size(); ++j) {
    if (!touches(all[j], send.target)) continue;
    if (all[j].kind != Kind::recv || all[j].peer != send.peer) return;
    send.answer = static_cast<int>(j);
    all[j].answer = static_cast<int>(index);
    return;
  }
}

// Marks the sends that pass on what the fold at `index` makes to those whose operands it reads.
void mark_fold(std::vector<Instruction>& all, size_t index) {
  Instruction& fold = all[index];
  fold.answers.assign(fold.operands.size(), -1);
  for (size_t j = index + 1; j < all.size() && !writes(all[j], fold.target); ++j) {
    if (all[j].kind != Kind::send || all[j].target != fold.target) continue;
    const auto at = std::find(fold.operands.begin(), fold.operands.end(), all[j].peer);
    if (at == fold.operands.end()) continue;
    int& answer = fold.answers[static_cast<size_t>(at - fold.operands.begin())];
    if (answer < 0) answer = static_cast<int>(j);
  }
}

}  // namespace

void mark_answers(std::vector<Instruction>& instructions) {
  for (size_t i = 0; i < instructions.size(); ++i) {
    if (instructions[i].kind == Kind::send) mark_send(instructions, i);
    if (instructions[i].kind == Kind::fold) mark_fold(instructions, i);
  }
}

}  // namespace pycomm
