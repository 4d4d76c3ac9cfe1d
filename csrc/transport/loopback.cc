// SPDX-License-Identifier: MIT
#include "transport/loopback.h"

#include <deque>
#include <vector>

namespace pycomm {
namespace {

struct Frame {
  FrameHeader header;
  std::vector<std::byte> payload;
  Window window;
};
struct Queue {
  std::deque<Frame> frames;
  int references = 0;  // of those in `frames`
};

class LoopbackChannel final : public Channel {
 public:
  LoopbackChannel(std::shared_ptr<Queue> out, std::shared_ptr<Queue> in, int slots,
                  size_t segment_bytes, LoopbackReach reach)
      : out_(std::move(out)),
        in_(std::move(in)),
        slots_(static_cast<size_t>(slots)),
        segment_bytes_(segment_bytes),
        reach_(std::move(reach)) {}

  std::byte* try_reserve(size_t payload_bytes) override {
    if (out_->frames.size() >= slots_) return nullptr;
    reserved_.resize(payload_bytes + 1);  // so that data() is never null
    return reserved_.data();
  }
  void commit(const FrameHeader& header) override {
    reserved_.resize(header.payload_bytes);
    out_->frames.push_back({header, std::move(reserved_), {}});
    reserved_ = {};
  }
  bool try_peek(ReceivedFrame& frame) override {
    if (in_->frames.empty()) return false;
    const Frame& oldest = in_->frames.front();
    frame = {oldest.header, oldest.payload.data(), oldest.window};
    return true;
  }
  void consume() override {
    if (in_->frames.front().window.data) --in_->references;
    in_->frames.pop_front();
  }
  bool peer_reaches(const std::byte* data, size_t bytes, size_t /*bytes_min*/) const override {
    return reach_ && reach_(data, bytes);
  }
  bool try_commit_reference(const FrameHeader& header, const Window& window) override {
    if (out_->frames.size() >= slots_) return false;
    out_->frames.push_back({header, {}, window});
    ++out_->references;
    return true;
  }
  bool references_consumed() override { return out_->references == 0; }
  bool try_flush() override { return true; }
  size_t payload_bytes_max() const override { return segment_bytes_; }

 private:
  std::shared_ptr<Queue> out_, in_;
  size_t slots_;
  size_t segment_bytes_;
  LoopbackReach reach_;
  std::vector<std::byte> reserved_;
};

}  // namespace

std::pair<std::unique_ptr<Channel>, std::unique_ptr<Channel>> make_loopback_pair(
    int slots, size_t segment_bytes, const LoopbackReach& reach) {
  auto there = std::make_shared<Queue>();
  auto back = std::make_shared<Queue>();
  return {std::make_unique<LoopbackChannel>(there, back, slots, segment_bytes, reach),
          std::make_unique<LoopbackChannel>(back, there, slots, segment_bytes, reach)};
}

}  // namespace pycomm
