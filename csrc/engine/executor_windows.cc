// SPDX-License-Identifier: MIT
// The Executor's half that works on memory which a peer maps: a chunk that travels as one reference
// instead of payload, and answers that are written where the peer waits for them.
//
// A reference stays at the head of its lane while segments are read out of it, and is consumed with
// the last one. Until then the chunk belongs to the receiver: the send is not done, so nothing that
// would write the chunk may run, nor may the operation complete.
#include "engine/executor.h"
#include "transport/arena.h"

namespace pycomm {

// Whether everything that instruction `index` follows is done, whole.
bool Executor::ready_whole(size_t index) const {
  const auto begin = static_cast<size_t>(program_->first_dependency[index]);
  const auto end = static_cast<size_t>(program_->first_dependency[index + 1]);
  for (size_t d = begin; d < end; ++d) {
    const Cursor& before = cursors_[static_cast<size_t>(program_->dependencies[d].before)];
    if (before.done != before.total) return false;
  }
  return true;
}

// Blocks of one call may share memory, as an in-place all_gather's do; chunks of one tensor cannot.
bool Executor::answered_in_place(const Instruction& one) const {
  return one.answer >= 0 && !moves_blocks(operation_->collective);
}

// Whether all that this rank gives to the sums of a first slice can be referred to. It is told to
// peers, so it is kept: promised().
bool Executor::may_refer_to_all() const {
  if (program_->plan.algorithm != "direct" || program_->links.codec) return false;
  for (const Instruction& one : program_->instructions) {
    if (one.kind != Instruction::Kind::send || one.answer < 0) continue;
    const Chunk& chunk = chunks_[static_cast<size_t>(one.target)];
    if (chunk.bytes == 0 || !mesh_.channel(one.peer, Lane::collective)
                                 .peer_reaches(chunk.data, chunk.bytes, reference_bytes_min(one))) {
      return false;
    }
  }
  return true;
}

bool Executor::promised(const Instruction& one) const {
  return refers_to_all_ && slice_begin_ == 0 && one.answer >= 0;
}

size_t Executor::reference_bytes_min(const Instruction& one) const {
  const bool answered = answered_in_place(one);
  if (mesh_.crowded()) {
    return answered ? kAnsweredReferenceBytesMinCrowded : kReferenceBytesMinCrowded;
  }
  return answered || moves_blocks(operation_->collective) ? kReferenceBytesMin
                                                          : kWholeReferenceBytesMin;
}

// One try at passing a chunk on without payload.
Executor::Pass Executor::pass_whole(size_t index) {
  Cursor& cursor = cursors_[index];
  const Instruction& one = program_->instructions[index];
  const Chunk& chunk = chunks_[static_cast<size_t>(one.target)];
  Channel& channel = mesh_.channel(one.peer, Lane::collective);
  switch (cursor.passage) {
    case Passage::undecided:
      if (cursor.done != 0 || chunk.bytes == 0 ||
          (!promised(one) &&
           !channel.peer_reaches(chunk.data, chunk.bytes, reference_bytes_min(one)))) {
        cursor.passage = Passage::payload;
        return Pass::as_payload;
      }
      if (ready_whole(index)) refer(index);
      return Pass::later;
    case Passage::payload:
      return Pass::as_payload;
    case Passage::referred:
      if (!channel.references_consumed()) return Pass::later;
      cursor.done = cursor.total - 1;
      return Pass::last_done;
    case Passage::placed:
      // The peer has the bytes; an empty frame in place of the chunk's says so.
      if (!ready_whole(index) || !channel.try_reserve(0)) return Pass::later;
      channel.commit(
          {0, sent_frames_[static_cast<size_t>(one.peer)]++, signature_for(chunk).pack()});
      cursor.done = cursor.total - 1;
      return Pass::last_done;
  }
  return Pass::as_payload;
}

void Executor::refer(size_t index) {
  const Instruction& one = program_->instructions[index];
  const Chunk& chunk = chunks_[static_cast<size_t>(one.target)];
  uint32_t& number = sent_frames_[static_cast<size_t>(one.peer)];
  const Window window{chunk.data, chunk.bytes, answered_in_place(one), refers_to_all_};
  Channel& channel = mesh_.channel(one.peer, Lane::collective);
  if (!channel.try_commit_reference({0, number, signature_for(chunk).pack()}, window)) return;
  ++number;
  cursors_[index].passage = Passage::referred;
  referred_ = true;
}

// Whether an empty frame for this instruction means that its chunk was written in place.
bool Executor::answer_is_here(const Instruction& one) const {
  return one.kind == Instruction::Kind::recv && answered_in_place(one) &&
         cursors_[static_cast<size_t>(one.answer)].passage == Passage::referred;
}

void Executor::quarantine_windows() {
  for (size_t i = 0; i < cursors_.size(); ++i) {
    const Cursor& cursor = cursors_[i];
    if (cursor.passage != Passage::referred || cursor.done == cursor.total) continue;
    const int chunk = program_->instructions[i].target;
    Arena::of_process().quarantine(chunks_[static_cast<size_t>(chunk)].data);
  }
}

}  // namespace pycomm
