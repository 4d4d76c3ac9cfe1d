// SPDX-License-Identifier: MIT
#include "engine/executor.h"

#include <algorithm>
#include <cstring>

#include "kernels/reduce.h"

namespace pycomm {

size_t chunk_begin(size_t count, int chunks, int index, size_t element_bytes) {
  if (index >= chunks) return count;
  const size_t unit = std::max<size_t>(1, kCacheLineBytes / element_bytes);
  const auto parts = static_cast<size_t>(chunks);
  const size_t each = (count + parts - 1) / parts;
  const size_t rounded = (each + unit - 1) / unit * unit;
  return std::min(count, rounded * static_cast<size_t>(index));
}

void Executor::start(const Program& program, const Operation& operation) {
  if (failure_) failure_ = {};
  first_ = 0;
  const bool again = has_shape_of(program, operation);
  program_ = &program;
  operation_ = &operation;
  if (again) {
    move_chunks_to(operation);
  } else {
    begin_signature();
    lay_out_chunks();
    lay_out_cursors();
  }
  signature_.sequence = operation.sequence;
  for (Cursor& cursor : cursors_) cursor = {0, cursor.total, Passage::undecided};
  sent_frames_.assign(static_cast<size_t>(mesh_.world_size()), 0);
  received_frames_.assign(static_cast<size_t>(mesh_.world_size()), 0);
}

// Whether the last operation differed in nothing but its number and where its tensor lies: then all
// that was laid out for it holds. Blocks lie anywhere, each on its own.
bool Executor::has_shape_of(const Program& program, const Operation& operation) const {
  return program_ == &program && !moves_blocks(operation.collective) &&
         signature_.collective == operation.collective && signature_.dtype == operation.dtype &&
         (signature_.op == operation.op || !is_reduction(operation.collective)) &&
         (signature_.root == operation.root || !is_rooted(operation.collective)) &&
         (operation.work.empty() || signature_.count == operation.work[0].count);
}

void Executor::move_chunks_to(const Operation& operation) {
  if (operation.work.empty() || operation.work[0].data == tensor_) return;
  std::byte* const to = operation.work[0].data;
  for (int i = 0; i < program_->plan.work_chunks; ++i) {
    auto& chunk = chunks_[static_cast<size_t>(i)];
    chunk.data = to + (chunk.data - tensor_);
  }
  tensor_ = to;
}

void Executor::begin_signature() {
  const Operation& operation = *operation_;
  element_bytes_ = size_of(operation.dtype);
  segment_bytes_ = mesh_.segment_bytes() / element_bytes_ * element_bytes_;
  signature_ = OpSignature{};
  signature_.collective = operation.collective;
  signature_.dtype = operation.dtype;
  signature_.plan = program_->hash;
  if (is_reduction(operation.collective)) signature_.op = operation.op;
  if (is_rooted(operation.collective)) signature_.root = operation.root;
}

void Executor::lay_out_cursors() {
  const auto& instructions = program_->instructions;
  cursors_.resize(instructions.size());
  for (size_t i = 0; i < instructions.size(); ++i) {
    const size_t bytes = chunks_[static_cast<size_t>(instructions[i].target)].bytes;
    const size_t segments = (bytes + segment_bytes_ - 1) / segment_bytes_;
    cursors_[i].total = static_cast<uint32_t>(std::max<size_t>(1, segments));
  }
}

// Work chunks point into the caller's memory, scratch chunks into ours.
void Executor::lay_out_chunks() {
  const Plan& plan = program_->plan;
  chunks_.assign(static_cast<size_t>(program_->chunk_count()), Chunk{});
  const auto put = [&](int index, std::byte* data, size_t count) {
    chunks_[static_cast<size_t>(index)] = {data, count * element_bytes_, count};
  };
  if (moves_blocks(operation_->collective)) {
    const size_t given = operation_->work.size();
    for (size_t i = 0; i < given; ++i) {
      put(static_cast<int>(i), operation_->work[i].data, operation_->work[i].count);
    }
    // A token speaks for this rank's own block: the input of a gather, the output of a scatter.
    signature_.count = given ? operation_->work[given - 1].count : 0;
  } else if (operation_->collective != Collective::barrier) {
    const Region& tensor = operation_->work[0];
    signature_.count = tensor.count;
    tensor_ = tensor.data;
    for (int i = 0; i < plan.work_chunks; ++i) {
      const size_t begin = chunk_begin(tensor.count, plan.work_chunks, i, element_bytes_);
      const size_t end = chunk_begin(tensor.count, plan.work_chunks, i + 1, element_bytes_);
      put(i, tensor.data + begin * element_bytes_, end - begin);
    }
  }
  size_t needed = 0;
  const auto padded = [](size_t bytes) {
    return (bytes + kCacheLineBytes - 1) / kCacheLineBytes * kCacheLineBytes;
  };
  for (const int like : plan.scratch_like) {
    if (like != kToken) needed += padded(chunks_[static_cast<size_t>(like)].bytes);
  }
  if (scratch_.size() < needed) scratch_.resize(needed);
  size_t offset = 0;
  for (size_t s = 0; s < plan.scratch_like.size(); ++s) {
    const int like = plan.scratch_like[s];
    auto& chunk = chunks_[static_cast<size_t>(plan.work_chunks) + s];
    if (like == kToken) {
      chunk = {nullptr, 0, signature_.count};
      continue;
    }
    chunk = chunks_[static_cast<size_t>(like)];
    chunk.data = scratch_.data() + offset;
    offset += padded(chunk.bytes);
  }
}

OpSignature Executor::signature_for(const Chunk& chunk) const {
  OpSignature signature = signature_;
  if (moves_blocks(signature.collective)) signature.count = chunk.count;
  return signature;
}

size_t Executor::segment_size(const Chunk& chunk, uint32_t segment) const {
  const size_t begin = segment * segment_bytes_;
  return std::min(segment_bytes_, chunk.bytes - std::min(chunk.bytes, begin));
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
      return receive(one, segment);
    case Instruction::Kind::fold:
      return fold(one, segment);
    case Instruction::Kind::reduce:
      return reduce_local(one, segment);
    case Instruction::Kind::copy:
      return copy(one, segment);
  }
  return false;
}

bool Executor::send(size_t index) {
  const auto pass = pass_whole(index);
  if (pass != Pass::as_payload) return pass == Pass::last_done;
  const Instruction& one = program_->instructions[index];
  const uint32_t segment = cursors_[index].done;
  const Chunk& chunk = chunks_[static_cast<size_t>(one.target)];
  const size_t bytes = segment_size(chunk, segment);
  Channel& channel = mesh_.channel(one.peer, Lane::collective);
  std::byte* room = channel.try_reserve(bytes);
  if (!room) return false;
  if (bytes) std::memcpy(room, chunk.data + segment * segment_bytes_, bytes);
  const uint32_t number = sent_frames_[static_cast<size_t>(one.peer)]++;
  channel.commit({static_cast<uint32_t>(bytes), number, signature_for(chunk).pack()});
  return true;
}

// The frame at hand, if it has come and belongs here.
bool Executor::peek(const Instruction& one, int peer, uint32_t segment, ReceivedFrame& frame) {
  if (!mesh_.channel(peer, Lane::collective).try_peek(frame)) return false;
  const Chunk& chunk = chunks_[static_cast<size_t>(one.target)];
  const OpSignature expected = signature_for(chunk);
  const auto theirs = OpSignature::unpack(frame.header.tag);
  if (theirs != expected) {
    failure_ = {
        FailureKind::mismatch, explain_mismatch(expected, theirs, mesh_.rank(), peer), {peer}};
    return false;
  }
  const bool refers = frame.window.data != nullptr;
  const size_t given = refers ? frame.window.bytes : frame.header.payload_bytes;
  const size_t bytes = refers ? chunk.bytes : segment_size(chunk, segment);
  const uint32_t number = received_frames_[static_cast<size_t>(peer)];
  const bool fits = given == bytes || (given == 0 && segment == 0 && answer_is_here(one));
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
  const size_t offset = segment * segment_bytes_;
  const size_t bytes = segment_size(chunk, segment);
  Cursor& cursor = cursors_[static_cast<size_t>(&one - program_->instructions.data())];
  if (frame.window.data) {
    std::memcpy(chunk.data + offset, frame.window.data + offset, bytes);
    if (segment + 1 < cursor.total) return true;
  } else if (frame.header.payload_bytes) {
    std::memcpy(chunk.data + offset, frame.payload, bytes);
  } else {
    cursor.done = cursor.total - 1;  // the whole chunk is empty, or here already
  }
  consume(one.peer);
  return true;
}

bool Executor::fold(const Instruction& one, uint32_t segment) {
  const Chunk& target = chunks_[static_cast<size_t>(one.target)];
  const Chunk& own = chunks_[static_cast<size_t>(one.source)];
  const size_t offset = segment * segment_bytes_;
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
    if (!window.data || segment + 1 == cursor.total) consume(one.operands[k]);
  }
}

bool Executor::reduce_local(const Instruction& one, uint32_t segment) {
  const Chunk& target = chunks_[static_cast<size_t>(one.target)];
  const Chunk& source = chunks_[static_cast<size_t>(one.source)];
  const size_t offset = segment * segment_bytes_;
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
  const size_t offset = segment * segment_bytes_;
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
