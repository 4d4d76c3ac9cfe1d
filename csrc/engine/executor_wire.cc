// SPDX-License-Identifier: MIT
// The Executor's half for chunks that travel in a narrow wire format. Which these are, and which
// have an image, the program says: narrow.h. Segments end where blocks of the format do, so each is
// an encoding of its own, and an image is its segments' encodings one after the other.
#include <cstring>

#include "engine/executor.h"

namespace pycomm {

size_t Executor::encoded_size(const Chunk& chunk, uint32_t segment) const {
  return program_->links.codec->wire_bytes(segment_size(chunk, segment) / sizeof(float));
}

std::byte* Executor::image_of(const Instruction& one, uint32_t segment) {
  const auto chunk = static_cast<size_t>(one.target);
  const size_t before = segment * chunks_[chunk].segment_bytes / sizeof(float);
  return images_.data() + image_at_[chunk] + program_->links.codec->wire_bytes(before);
}

void Executor::lay_out_images() {
  image_at_.assign(chunks_.size(), 0);
  size_t needed = 0;
  for (const Instruction& one : program_->instructions) {
    if (!one.image || one.kind == Instruction::Kind::send) continue;
    const auto chunk = static_cast<size_t>(one.target);
    image_at_[chunk] = needed;
    needed += program_->links.codec->wire_bytes(chunks_[chunk].count);
  }
  if (images_.size() < needed) images_.resize(needed);
}

bool Executor::send_encoded(const Instruction& one, uint32_t segment) {
  const Chunk& chunk = chunks_[static_cast<size_t>(one.target)];
  const size_t bytes = encoded_size(chunk, segment);
  uint32_t& number = sent_frames_[static_cast<size_t>(one.peer)];
  Channel& channel = mesh_.channel(one.peer, Lane::collective);
  const FrameHeader header{static_cast<uint32_t>(bytes), number, signature_for(chunk).pack()};
  if (one.image) {
    if (!channel.try_send(header, image_of(one, segment))) return false;
  } else {
    std::byte* const room = channel.try_reserve(bytes);
    if (!room) return false;
    const auto* const from =
        reinterpret_cast<const float*>(chunk.data + segment * chunk.segment_bytes);
    program_->links.codec->encode(from, room, segment_size(chunk, segment) / sizeof(float));
    channel.commit(header);
  }
  ++number;
  return true;
}

bool Executor::receive_encoded(const Instruction& one, uint32_t segment) {
  const Chunk& chunk = chunks_[static_cast<size_t>(one.target)];
  ReceivedFrame frame;
  if (!peek(one, one.peer, segment, frame)) return false;
  if (const size_t bytes = frame.header.payload_bytes) {
    auto* const to = reinterpret_cast<float*>(chunk.data + segment * chunk.segment_bytes);
    program_->links.codec->decode(frame.payload, to, segment_size(chunk, segment) / sizeof(float));
    if (one.image) std::memcpy(image_of(one, segment), frame.payload, bytes);
  }
  consume(one.peer);
  return true;
}

// Operands of links that are not narrow come as they are, payload or window; answers in place they
// get none, since what a peer is to hold is the decoded sum.
bool Executor::fold_encoded(const Instruction& one, uint32_t segment) {
  const Chunk& target = chunks_[static_cast<size_t>(one.target)];
  const Chunk& own = chunks_[static_cast<size_t>(one.source)];
  const size_t offset = segment * target.segment_bytes;
  const size_t operands = one.operands.size();
  frames_.resize(operands);
  encoded_.assign(operands, nullptr);
  plain_.assign(operands, nullptr);
  for (size_t k = 0; k < operands; ++k) {
    ReceivedFrame& frame = frames_[k];
    const int peer = one.operands[k];
    if (peer == mesh_.rank()) {
      frame.window = {};
      plain_[k] = reinterpret_cast<const float*>(own.data + offset);
      continue;
    }
    if (!peek(one, peer, segment, frame)) return false;
    frame.window.answer_here = false;
    const std::byte* const from = frame.window.data ? frame.window.data + offset : frame.payload;
    if (program_->links.to(peer)) {
      encoded_[k] = from;
    } else {
      plain_[k] = reinterpret_cast<const float*>(from);
    }
  }
  if (const size_t count = segment_size(target, segment) / sizeof(float)) {
    const bool averages = one.completes && operation_->op == ReduceOp::avg;
    auto* const sum = reinterpret_cast<float*>(target.data + offset);
    program_->links.codec->reduce(sum, encoded_.data(), plain_.data(), static_cast<int>(operands),
                                  count, averages ? mesh_.world_size() : 1);
    if (one.image) {
      program_->links.codec->round_trip(sum, image_of(one, segment), count);
    }
  }
  finish_fold(one, segment);
  return true;
}

}  // namespace pycomm
