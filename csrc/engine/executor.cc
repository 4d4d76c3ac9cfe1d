// SPDX-License-Identifier: MIT
#include "engine/executor.h"

#include <algorithm>
#include <cstring>

#include "kernels/reduce.h"

namespace pycomm {

OpSignature Executor::signature_for(const Chunk& chunk) const {
  OpSignature signature = signature_;
  if (moves_blocks(signature.collective)) signature.count = chunk.count;
  return signature;
}

size_t Executor::segment_size(const Chunk& chunk, uint32_t segment) const {
  const size_t begin = segment * chunk.segment_bytes;
  return std::min(chunk.segment_bytes, chunk.bytes - std::min(chunk.bytes, begin));
}

bool Executor::ready(size_t index) const {
  const uint32_t segment = cursors_[index].done;
  const auto begin = static_cast<size_t>(program_->first_dependency[index]);
  const auto end = static_cast<size_t>(program_->first_dependency[index + 1]);
  for (size_t d = begin; d < end; ++d) {
    const auto& dependency = program_->dependencies[d];
    const Cursor& before = cursors_[static_cast<size_t>(dependency.before)];
    if (before.done == before.total) continue;
    if (dependency.whole || before.done <= segment) return false;
  }
  return true;
}

Executor::Progress Executor::advance() {
  try {
    bool moved = false;
    referred_ = false;
    for (size_t i = first_; i < cursors_.size(); ++i) {
      Cursor& cursor = cursors_[i];
      if (cursor.done < cursor.total && ready(i) && step(i)) {
        ++cursor.done;
        moved = true;
      }
      if (failure_) return Progress::failed;
      if (i == first_ && cursor.done == cursor.total) ++first_;
    }
    if (first_ == cursors_.size() && begin_next_slice()) return Progress::moved;
    if (first_ == cursors_.size()) return flush() ? Progress::done : Progress::blocked;
    moved |= referred_;
    if (!moved) flush();
    return moved ? Progress::moved : Progress::blocked;
  } catch (const CommError& error) {
    failure_ = error.failure();
    return Progress::failed;
  }
}

bool Executor::flush() {
  bool all = true;
  for (const Instruction& one : program_->instructions) {
    if (one.kind == Instruction::Kind::send) {
      all &= mesh_.channel(one.peer, Lane::collective).try_flush();
    }
  }
  return all;
}

bool Executor::step(size_t index) {
  const Instruction& one = program_->instructions[index];
  const uint32_t segment = cursors_[index].done;
  switch (one.kind) {
    case Instruction::Kind::send:
      return send(index);
    case Instruction::Kind::recv:
      return one.narrow ? receive_encoded(one, segment) : receive(one, segment);
    case Instruction::Kind::fold:
      return one.narrow ? fold_encoded(one, segment) : fold(one, segment);
    case Instruction::Kind::reduce:
      return reduce_local(one, segment);
    case Instruction::Kind::copy:
      return copy(one, segment);
  }
  return false;
}

bool Executor::send(size_t index) {
  const Instruction& one = program_->instructions[index];
  const uint32_t segment = cursors_[index].done;
  if (one.narrow) return send_encoded(one, segment);
  const auto pass = pass_whole(index);
  if (pass != Pass::as_payload) return pass == Pass::last_done;
  const Chunk& chunk = chunks_[static_cast<size_t>(one.target)];
  const size_t bytes = segment_size(chunk, segment);
  uint32_t& number = sent_frames_[static_cast<size_t>(one.peer)];
  const FrameHeader header{static_cast<uint32_t>(bytes), number, signature_for(chunk).pack()};
  const std::byte* const payload = chunk.data + segment * chunk.segment_bytes;
  if (!mesh_.channel(one.peer, Lane::collective).try_send(header, payload)) return false;
  ++number;
  return true;
}

// The frame at hand, if it has come and belongs here. A payload that is only to be moved may
// already lie where it is to go.
bool Executor::peek(const Instruction& one, int peer, uint32_t segment, ReceivedFrame& frame) {
  const Chunk& chunk = chunks_[static_cast<size_t>(one.target)];
  Channel& channel = mesh_.channel(peer, Lane::collective);
  const bool encoded = one.narrow && program_->links.to(peer);
  const size_t size = encoded ? encoded_size(chunk, segment) : segment_size(chunk, segment);
  const bool may_be_put = one.kind == Instruction::Kind::recv && size > kStagedBytes && !encoded;
  // First, and as little as possible before it: this is what a waiting rank does over and over.
  if (!may_be_put && !channel.try_peek(frame)) return false;
  const OpSignature expected = signature_for(chunk);
  if (may_be_put) {
    const FrameHeader header{static_cast<uint32_t>(size),
                             received_frames_[static_cast<size_t>(peer)], expected.pack()};
    std::byte* const into = chunk.data + segment * chunk.segment_bytes;
    if (!channel.try_peek_into(frame, header, into)) return false;
  }
  const auto theirs = OpSignature::unpack(frame.header.tag);
  if (theirs != expected) {
    failure_ = {
        FailureKind::mismatch, explain_mismatch(expected, theirs, mesh_.rank(), peer), {peer}};
    return false;
  }
  const bool refers = frame.window.data != nullptr;
  const size_t given = refers ? frame.window.bytes : frame.header.payload_bytes;
  const size_t bytes = refers ? chunk.bytes : size;
  const uint32_t number = received_frames_[static_cast<size_t>(peer)];
  const bool fits = encoded ? given == bytes && !refers
                            : given == bytes || (given == 0 && segment == 0 && answer_is_here(one));
  if (!fits || frame.header.number != number) {
    failure_ = {FailureKind::mismatch,
                str("rank ", peer, " sent frame ", frame.header.number, " of ", given,
                    " bytes, expected frame ", number, " of ", bytes,
                    " bytes; a frame was lost or all ranks do not run the same pycomm"),
                {peer}};
    return false;
  }
  return true;
}

void Executor::consume(int peer) {
  mesh_.channel(peer, Lane::collective).consume();
  ++received_frames_[static_cast<size_t>(peer)];
}

bool Executor::receive(const Instruction& one, uint32_t segment) {
  const Chunk& chunk = chunks_[static_cast<size_t>(one.target)];
  ReceivedFrame frame;
  if (!peek(one, one.peer, segment, frame)) return false;
  const size_t offset = segment * chunk.segment_bytes;
  const size_t bytes = segment_size(chunk, segment);
  Cursor& cursor = cursors_[static_cast<size_t>(&one - program_->instructions.data())];
  if (frame.window.data) {
    std::memcpy(chunk.data + offset, frame.window.data + offset, bytes);
    if (segment + 1 < cursor.total) return true;
  } else if (frame.header.payload_bytes) {
    if (frame.payload != chunk.data + offset) {
      std::memcpy(chunk.data + offset, frame.payload, bytes);
    }
  } else {
    cursor.done = cursor.total - 1;  // the whole chunk is empty, or here already
  }
  consume(one.peer);
  return true;
}

bool Executor::fold(const Instruction& one, uint32_t segment) {
  const Chunk& target = chunks_[static_cast<size_t>(one.target)];
  const Chunk& own = chunks_[static_cast<size_t>(one.source)];
  const size_t offset = segment * target.segment_bytes;
  const size_t operands = one.operands.size();
  frames_.resize(operands);
  sources_.clear();
  answers_.clear();
  for (size_t k = 0; k < operands; ++k) {
    ReceivedFrame& frame = frames_[k];
    if (one.operands[k] == mesh_.rank()) {
      sources_.push_back(own.data + offset);
      continue;
    }
    if (!peek(one, one.operands[k], segment, frame)) return false;
    sources_.push_back(frame.window.data ? frame.window.data + offset : frame.payload);
    if (!frame.window.answer_here || one.answers[k] < 0) continue;
    answers_.push_back(frame.window.data + offset);
  }
  if (const size_t bytes = segment_size(target, segment)) {
    ReduceTask task;
    task.op = operation_->op;
    task.dtype = operation_->dtype;
    task.target = target.data + offset;
    task.sources = sources_.data();
    task.source_count = static_cast<int>(operands);
    task.count = bytes / element_bytes_;
    task.divisor = one.completes && operation_->op == ReduceOp::avg ? mesh_.world_size() : 1;
    task.copies = answers_.data();
    task.copy_count = static_cast<int>(answers_.size());
    reduce(task);
  }
  finish_fold(one, segment);
  return true;
}

// What was read is given back: a reference after its last segment.
void Executor::finish_fold(const Instruction& one, uint32_t segment) {
  const Cursor& cursor = cursors_[static_cast<size_t>(&one - program_->instructions.data())];
  for (size_t k = 0; k < one.operands.size(); ++k) {
    if (one.operands[k] == mesh_.rank()) continue;
    const Window& window = frames_[k].window;
    if (window.answer_here && one.answers[k] >= 0) {
      cursors_[static_cast<size_t>(one.answers[k])].passage = Passage::placed;
    }
    if (window.data && segment + 1 != cursor.total) continue;
    if (window.data && window.one_for_each_peer && slice_begin_ == 0) ++peers_refer_to_all_;
    consume(one.operands[k]);
  }
}

bool Executor::reduce_local(const Instruction& one, uint32_t segment) {
  const Chunk& target = chunks_[static_cast<size_t>(one.target)];
  const Chunk& source = chunks_[static_cast<size_t>(one.source)];
  const size_t offset = segment * target.segment_bytes;
  const size_t bytes = segment_size(target, segment);
  if (bytes == 0) return true;
  const void* operands[2] = {target.data + offset, source.data + offset};
  if (one.peer >= 0 && one.peer < mesh_.rank()) std::swap(operands[0], operands[1]);
  ReduceTask task;
  task.op = operation_->op;
  task.dtype = operation_->dtype;
  task.target = target.data + offset;
  task.sources = operands;
  task.source_count = 2;
  task.count = bytes / element_bytes_;
  task.divisor = one.completes && operation_->op == ReduceOp::avg ? mesh_.world_size() : 1;
  reduce(task);
  return true;
}

bool Executor::copy(const Instruction& one, uint32_t segment) {
  const Chunk& target = chunks_[static_cast<size_t>(one.target)];
  const Chunk& source = chunks_[static_cast<size_t>(one.source)];
  const size_t bytes = segment_size(target, segment);
  PYCOMM_ASSERT(target.bytes == source.bytes, target.bytes, " != ", source.bytes);
  const size_t offset = segment * target.segment_bytes;
  if (bytes && target.data != source.data) {
    std::memcpy(target.data + offset, source.data + offset, bytes);
  }
  return true;
}

std::vector<int> Executor::awaited() const {
  std::vector<int> peers;
  const auto want = [&](int peer) {
    if (std::find(peers.begin(), peers.end(), peer) == peers.end()) peers.push_back(peer);
  };
  for (size_t i = first_; i < cursors_.size(); ++i) {
    if (cursors_[i].done == cursors_[i].total || !ready(i)) continue;
    const Instruction& one = program_->instructions[i];
    if (one.kind == Instruction::Kind::send || one.kind == Instruction::Kind::recv) want(one.peer);
    if (one.kind != Instruction::Kind::fold) continue;
    for (const int peer : one.operands) {
      ReceivedFrame frame;
      if (peer != mesh_.rank() && !mesh_.channel(peer, Lane::collective).try_peek(frame)) {
        want(peer);
      }
    }
  }
  return peers;
}

bool Executor::find_contradiction() {
  for (int peer = 0; peer < mesh_.world_size(); ++peer) {
    if (peer == mesh_.rank()) continue;
    ReceivedFrame frame;
    try {
      if (!mesh_.channel(peer, Lane::collective).try_peek(frame)) continue;
    } catch (const CommError&) {
      // A peer that is through with this operation may have left and closed the lane; advance()
      // will say so if this rank still needs anything from it.
      continue;
    }
    auto theirs = OpSignature::unpack(frame.header.tag);
    if (theirs.sequence != signature_.sequence) continue;  // a peer may be ahead of us
    auto mine = signature_;
    if (moves_blocks(mine.collective) && moves_blocks(theirs.collective)) mine.count = theirs.count;
    if (theirs == mine) continue;
    failure_ = {FailureKind::mismatch, explain_mismatch(mine, theirs, mesh_.rank(), peer), {peer}};
    return true;
  }
  return false;
}

}  // namespace pycomm
