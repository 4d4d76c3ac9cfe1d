// SPDX-License-Identifier: MIT
// What a BucketReducer has of a device: the stream on which buckets are packed, and of each bucket
// the launches that pack it, and narrow it for its way and widen what comes back if so asked.
//
// A bucket is packed behind the streams that have made its gradients, while backward goes on; its
// all_reduce comes behind that, and whoever takes the results behind the all_reduce: by events, so
// that no thread waits for the device. Under the reducer's mutex.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <memory>
#include <optional>
#include <vector>

#include "bucket/device_packer.h"

namespace pycomm {

// A model's device, and the stream of its buckets.
class BucketStream {
 public:
  // Throws UsageError where pycomm cannot work on it.
  explicit BucketStream(c10::Device where);
  BucketStream(const BucketStream&) = delete;
  BucketStream& operator=(const BucketStream&) = delete;

  c10::Device where() const { return own_.device(); }
  Device& device() const { return device_; }
  c10::Stream own() const { return own_; }
  void* own_native() const { return guard_.getStreamNativeHandle(own_); }
  // The calling thread's.
  c10::Stream current() const { return guard_.getStream(where()); }
  // Throws UsageError while a graph is captured on the current stream.
  void refuse_capture() const;
  // `stream` goes on when what `other` has been given by now is done.
  void order(const c10::Stream& stream, const c10::Stream& other);
  // The memory stays with `stream` until what it has been given by the time of its release is done.
  void record(const at::Tensor& tensor, const c10::Stream& stream) const;

 private:
  const c10::impl::VirtualGuardImpl guard_;
  const c10::Stream own_;
  Device& device_;
  c10::Event event_;
};

class DeviceBucket {
 public:
  // `flat`: where the gradients lie, that of tensor i from element begins[i] on. `narrow`: what
  // they travel as; null: as they are. Throws UsageError for a dtype that cannot be packed.
  DeviceBucket(BucketStream& stream, at::Tensor flat, std::vector<size_t> begins,
               std::vector<size_t> counts, std::optional<at::ScalarType> narrow);
  ~DeviceBucket() { let_go({}); }
  DeviceBucket(const DeviceBucket&) = delete;
  DeviceBucket& operator=(const DeviceBucket&) = delete;
  static bool serves(at::ScalarType dtype);

  // What is reduced.
  const at::Tensor& sent() const { return narrow_.defined() ? narrow_ : flat_; }
  // A gradient of this bucket has been made on this stream.
  void arrives_on(const c10::Stream& stream);
  // The stream of buckets goes on behind those. Then, with it as the current one:
  void order();
  // From where the gradients are now, times `factor`. Nothing to do where they are in their place.
  void pack(const std::vector<void*>& gradients, double factor);
  // Behind the all_reduce: the gradients are in their place.
  void unpack();

  // A tensor that pack() reads, until let_go(): `taker`, the stream of whoever takes the results,
  // goes on behind the stream of buckets now, or, if null, nothing is known of it.
  void keep(at::Tensor gradient) { kept_.push_back(std::move(gradient)); }
  void let_go(const std::optional<c10::Stream>& taker);

 private:
  void use(const c10::Stream& stream);
  void launch_pack(const std::vector<void*>& gradients, double factor);
  std::unique_ptr<DevicePacker> packer(const std::vector<size_t>& begins,
                                       const std::vector<size_t>& counts);

  BucketStream& stream_;
  const at::Tensor flat_;
  at::Tensor narrow_;
  DType type_, sent_type_;
  std::vector<at::Tensor> tables_;
  std::unique_ptr<DevicePacker> packer_, widener_;
  std::vector<void*> places_;  // of the gradients in `flat`
  bool packed_ = false;        // into `narrow_`, and not widened yet
  std::vector<c10::Stream> arrivals_, users_;
  std::vector<at::Tensor> kept_;
};

}  // namespace pycomm
