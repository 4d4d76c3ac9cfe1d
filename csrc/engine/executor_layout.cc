// SPDX-License-Identifier: MIT
// The Executor's half that knows where an operation's memory lies: chunks, segments, slices, and
// what of the last operation's layout can be kept.
#include <algorithm>

#include "engine/executor.h"

namespace pycomm {

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
    slice_begin_ = 0;
    lay_out_chunks();
    lay_out_cursors();
  }
  signature_.sequence = operation.sequence;
  rewind_cursors();
  refers_to_all_ = sliced_ && may_refer_to_all();
  peers_refer_to_all_ = 0;
  sent_frames_.assign(static_cast<size_t>(mesh_.world_size()), 0);
  received_frames_.assign(static_cast<size_t>(mesh_.world_size()), 0);
}

// Whether the last operation differed in nothing but its number and where its tensor lies: then all
// that was laid out for it holds. Blocks lie anywhere, each on its own.
bool Executor::has_shape_of(const Program& program, const Operation& operation) const {
  return program_ == &program && !moves_blocks(operation.collective) && !sliced_ &&
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
  signature_ = OpSignature{};
  signature_.collective = operation.collective;
  signature_.dtype = operation.dtype;
  signature_.plan = program_->hash;
  if (program_->links.codec) signature_.codec = program_->links.codec->wire;
  if (is_reduction(operation.collective)) signature_.op = operation.op;
  if (is_rooted(operation.collective)) signature_.root = operation.root;
}

void Executor::lay_out_cursors() {
  const auto& instructions = program_->instructions;
  cursors_.resize(instructions.size());
  for (size_t i = 0; i < instructions.size(); ++i) {
    const Chunk& chunk = chunks_[static_cast<size_t>(instructions[i].target)];
    const size_t segments = (chunk.bytes + chunk.segment_bytes - 1) / chunk.segment_bytes;
    cursors_[i].total = static_cast<uint32_t>(std::max<size_t>(1, segments));
  }
}

void Executor::rewind_cursors() {
  for (Cursor& cursor : cursors_) {
    cursor.done = 0;
    cursor.passage = Passage::undecided;
  }
}

// Slices keep what travels through rings in the cache. Where every rank works in the memory of all
// others nothing does, and each slice costs two meetings: 4 MiB took half as long again. In
// "direct" every rank hears from all others in the first slice, so all know the same at its end.
bool Executor::takes_rest_whole() const {
  return refers_to_all_ && peers_refer_to_all_ == mesh_.world_size() - 1;
}

// False when there is none. Frame numbers run on, so no frame of one slice can be taken for one of
// another.
bool Executor::begin_next_slice() {
  const size_t begin = slice_begin_ + slice_count_;
  if (!sliced_ || begin >= operation_->work[0].count) return false;
  if (takes_rest_whole()) slice_count_ = operation_->work[0].count - begin;
  const bool as_before = !takes_rest_whole() && begin + slice_count_ <= operation_->work[0].count;
  slice_begin_ = begin;
  first_ = 0;
  rewind_cursors();
  if (as_before) {
    for (int i = 0; i < program_->plan.work_chunks; ++i) {
      chunks_[static_cast<size_t>(i)].data += slice_count_ * element_bytes_;
    }
    return true;
  }
  lay_out_chunks();
  lay_out_cursors();
  return true;
}

// Work chunks point into the caller's memory, scratch chunks into ours.
void Executor::lay_out_chunks() {
  const Plan& plan = program_->plan;
  const size_t encoded_together = program_->links.codec ? program_->links.codec->block : 1;
  chunks_.assign(static_cast<size_t>(program_->chunk_count()), Chunk{});
  const auto put = [&](int index, std::byte* data, size_t count) {
    const size_t bytes = count * element_bytes_;
    chunks_[static_cast<size_t>(index)] = {
        data, bytes, count, segment_bytes_of(cut_, bytes, element_bytes_, encoded_together)};
  };
  sliced_ = false;
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
    if (slice_begin_ == 0) {
      const bool whole = program_->links.codec && !cut_.slice_encoded;
      slice_count_ = operation_->collective == Collective::all_reduce && !whole
                         ? slice_count_of(cut_, tensor.count, element_bytes_)
                         : tensor.count;
    }
    sliced_ = slice_begin_ > 0 || slice_count_ < tensor.count;
    const size_t count = std::min(slice_count_, tensor.count - slice_begin_);
    for (int i = 0; i < plan.work_chunks; ++i) {
      const size_t begin = chunk_begin(count, plan.work_chunks, i, element_bytes_);
      const size_t end = chunk_begin(count, plan.work_chunks, i + 1, element_bytes_);
      put(i, tensor.data + (slice_begin_ + begin) * element_bytes_, end - begin);
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
      chunk = {nullptr, 0, signature_.count, cut_.segment_bytes};
      continue;
    }
    chunk = chunks_[static_cast<size_t>(like)];
    chunk.data = scratch_.data() + offset;
    offset += padded(chunk.bytes);
  }
  if (program_->links.codec) lay_out_images();
}

}  // namespace pycomm
