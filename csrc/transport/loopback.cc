// SPDX-License-Identifier: MIT
#include "transport/loopback.h"

#include <deque>
#include <vector>

namespace pycomm {
namespace {

struct Frame {
  FrameHeader header;
  std::vector<std::byte> payload;
};
using Queue = std::deque<Frame>;

class LoopbackChannel final : public Channel {
 public:
  LoopbackChannel(std::shared_ptr<Queue> out, std::shared_ptr<Queue> in, int slots,
                  size_t segment_bytes)
      : out_(std::move(out)),
        in_(std::move(in)),
        slots_(static_cast<size_t>(slots)),
        segment_bytes_(segment_bytes) {}

  std::byte* try_reserve(size_t payload_bytes) override {
    if (out_->size() >= slots_) return nullptr;
    reserved_.resize(payload_bytes + 1);  // so that data() is never null
    return reserved_.data();
  }
  void commit(const FrameHeader& header) override {
    reserved_.resize(header.payload_bytes);
    out_->push_back({header, std::move(reserved_)});
    reserved_ = {};
  }
  bool try_peek(ReceivedFrame& frame) override {
    if (in_->empty()) return false;
    frame.header = in_->front().header;
    frame.payload = in_->front().payload.data();
    return true;
  }
  void consume() override { in_->pop_front(); }
  bool try_flush() override { return true; }
  size_t payload_bytes_max() const override { return segment_bytes_; }

 private:
  std::shared_ptr<Queue> out_, in_;
  size_t slots_;
  size_t segment_bytes_;
  std::vector<std::byte> reserved_;
};

}  // namespace

std::pair<std::unique_ptr<Channel>, std::unique_ptr<Channel>> make_loopback_pair(
    int slots, size_t segment_bytes) {
  auto there = std::make_shared<Queue>();
  auto back = std::make_shared<Queue>();
  return {std::make_unique<LoopbackChannel>(there, back, slots, segment_bytes),
          std::make_unique<LoopbackChannel>(back, there, slots, segment_bytes)};
}

}  // namespace pycomm
