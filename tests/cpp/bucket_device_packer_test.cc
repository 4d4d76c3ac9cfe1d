// SPDX-License-Identifier: MIT
// A bucket's tables on a device: launches that find them there, addresses that change while a
// stream is held, and what is left when it never goes on.
#include <atomic>
#include <cstring>
#include <numeric>
#include <random>

#include "bucket/device_packer.h"
#include "check.h"
#include "device/fake_device.h"

using namespace pycomm;

namespace {

void must(const Failure& failure) { CHECK(!failure, failure.text); }

// A device with a slow stream, and a bucket of a few tensors on it, one of them empty.
class Bucket {
 public:
  explicit Bucket(FakeOptions options = {.seed = 5, .delay_us = 200}) : device_(options) {
    begins_ = {0, 16, 16, 9024};
    counts_ = {7, 0, 9001, 300};
    kernels_ = host_kernels([this](void* stream, std::function<void()> work) {
      must(device_.enqueue_host(stream, std::move(work)));
    });
    must(device_.create_stream(false, &stream_));
    packer_ = std::make_unique<DevicePacker>(device_, *kernels_, begins_, counts_);
    must(device_.allocate(packer_->table_bytes(), &table_));
    packer_->place(table_);
    flat_.resize(9024 + 300, -1.0f);
  }
  ~Bucket() {
    must(device_.synchronize(stream_));
    packer_.reset();
    must(device_.release(table_));
  }

  using Tensors = std::vector<std::vector<float>>;
  Tensors tensors(float first) const {
    Tensors made;
    for (const size_t count : counts_) {
      made.emplace_back(count + 1);  // one behind the end
      std::iota(made.back().begin(), made.back().end(), first);
      first += 10000;
    }
    return made;
  }
  static std::vector<void*> addresses(Tensors& tensors) {
    std::vector<void*> all;
    for (auto& one : tensors) all.push_back(one.data());
    return all;
  }
  void check_holds(const Tensors& tensors, float factor, const std::vector<float>& flat) const {
    for (size_t i = 0; i < counts_.size(); ++i) {
      for (size_t e = 0; e < counts_[i]; ++e) {
        CHECK(flat[begins_[i] + e] == tensors[i][e] * factor, "tensor ", i, ", element ", e);
      }
    }
  }
  DevicePacker::Sides sides(void* flat, double scale = 1) const {
    return {DType::float32, flat, DType::float32, scale};
  }

  FakeDevice device_;
  std::vector<size_t> begins_, counts_;
  std::unique_ptr<DeviceKernels> kernels_;
  void *stream_ = nullptr, *table_ = nullptr;
  std::unique_ptr<DevicePacker> packer_;
  std::vector<float> flat_;
};

}  // namespace

TEST("tensors come into the bucket and back, and tables are sent once") {
  Bucket bucket;
  auto tensors = bucket.tensors(1), back = bucket.tensors(-1);
  const auto from = Bucket::addresses(tensors), to = Bucket::addresses(back);
  for (int round = 0; round < 10; ++round) {
    must(bucket.packer_->pack(bucket.sides(bucket.flat_.data(), 0.5), from, bucket.stream_));
  }
  CHECK(bucket.packer_->uploads() == 1);
  must(bucket.packer_->unpack(bucket.sides(bucket.flat_.data(), 2), to, bucket.stream_));
  CHECK(bucket.packer_->uploads() == 2);
  must(bucket.device_.synchronize(bucket.stream_));
  bucket.check_holds(tensors, 0.5, bucket.flat_);
  CHECK(bucket.flat_[7] == -1 && bucket.flat_[15] == -1, "a gap was written");
  for (size_t i = 0; i < back.size(); ++i) {
    const float behind = back[i].back();
    back[i].back() = tensors[i].back();
    CHECK(back[i] == tensors[i] && behind < 40000, "tensor ", i);
  }
}

TEST("addresses that change while the stream is held reach the launch they were given for") {
  Bucket bucket;
  uint64_t word = 0;
  must(bucket.device_.wait_value(bucket.stream_, &word, 1));
  std::vector<Bucket::Tensors> rounds;
  std::vector<std::vector<float>> flats(8, bucket.flat_);
  for (int round = 0; round < 8; ++round) {
    rounds.push_back(bucket.tensors(static_cast<float>(100 * round)));
    const auto from = Bucket::addresses(rounds.back());
    const auto sides = bucket.sides(flats[static_cast<size_t>(round)].data());
    must(bucket.packer_->pack(sides, from, bucket.stream_));
  }
  CHECK(bucket.packer_->uploads() == 8);
  const size_t pinned = bucket.packer_->pinned_bytes();
  std::atomic_ref(word).store(1);
  must(bucket.device_.synchronize(bucket.stream_));
  for (size_t round = 0; round < 8; ++round) bucket.check_holds(rounds[round], 1, flats[round]);
  // What was used then is used again.
  for (int round = 0; round < 8; ++round) {
    const auto from = Bucket::addresses(rounds[static_cast<size_t>(round)]);
    must(bucket.packer_->pack(bucket.sides(bucket.flat_.data()), from, bucket.stream_));
  }
  CHECK(bucket.packer_->pinned_bytes() == pinned, bucket.packer_->pinned_bytes(), " of ", pinned);
  must(bucket.device_.synchronize(bucket.stream_));
  bucket.check_holds(rounds.back(), 1, bucket.flat_);
}

TEST("tensors that lie in their place are scaled there") {
  Bucket bucket;
  auto tensors = bucket.tensors(3);
  const auto from = Bucket::addresses(tensors);
  must(bucket.packer_->pack(bucket.sides(bucket.flat_.data()), from, bucket.stream_));
  std::vector<void*> places;
  for (const size_t begin : bucket.begins_) places.push_back(bucket.flat_.data() + begin);
  must(bucket.packer_->pack(bucket.sides(bucket.flat_.data(), 0.25), places, bucket.stream_));
  must(bucket.device_.synchronize(bucket.stream_));
  bucket.check_holds(tensors, 0.25, bucket.flat_);
}

TEST("after a call of the device that failed the tables are sent anew") {
  for (int calls = 0; calls < 4; ++calls) {
    Bucket bucket;
    auto tensors = bucket.tensors(1);
    const auto from = Bucket::addresses(tensors);
    bucket.device_.fail_after(calls, "on purpose");
    Failure first;
    try {
      first = bucket.packer_->pack(bucket.sides(bucket.flat_.data()), from, bucket.stream_);
    } catch (const std::exception& error) {  // the kernel's, which this test puts on the stream
      first = {FailureKind::system, error.what(), {}};
    }
    CHECK(first.text.find("on purpose") != std::string::npos, calls, ": ", first.text);
    must(bucket.packer_->pack(bucket.sides(bucket.flat_.data()), from, bucket.stream_));
    must(bucket.device_.synchronize(bucket.stream_));
    bucket.check_holds(tensors, 1, bucket.flat_);
  }
}
