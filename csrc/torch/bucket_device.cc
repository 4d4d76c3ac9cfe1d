// SPDX-License-Identifier: MIT
#include "torch/bucket_device.h"

#include <ATen/Functions.h>
#include <c10/core/StreamGuard.h>

#include <algorithm>

#include "torch/device_registry.h"

namespace pycomm {
namespace {

void check(const Failure& failure) {
  if (failure) throw CommError(failure);
}

Device& device_at(c10::Device where) {
  Device* const device = served_device(where);
  PYCOMM_USAGE(device, "DataParallel: there is no ", where, " that pycomm can work on");
  return *device;
}

// As what a tensor is packed: a complex number is two real ones.
std::optional<DType> packed_as(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat:
    case at::kComplexFloat:
      return DType::float32;
    case at::kDouble:
    case at::kComplexDouble:
      return DType::float64;
    case at::kHalf:
      return DType::float16;
    case at::kBFloat16:
      return DType::bfloat16;
    default:
      return {};
  }
}

bool holds(const std::vector<c10::Stream>& streams, const c10::Stream& one) {
  return std::find(streams.begin(), streams.end(), one) != streams.end();
}

}  // namespace

BucketStream::BucketStream(c10::Device where)
    : guard_(where.type()),
      own_(guard_.getStreamFromGlobalPool(where, true)),
      device_(device_at(where)),
      event_(where.type()) {}

void BucketStream::refuse_capture() const {
  Capture capture;
  check(device_.capture_of(guard_.getStreamNativeHandle(current()), &capture));
  PYCOMM_USAGE(capture.id == 0,
               "DataParallel: a graph is being captured, but at the end of a backward the ranks "
               "tell each other on the host which parameters they have used, which a graph cannot "
               "replay; capture the forward and backward of the module without DataParallel");
}

void BucketStream::order(const c10::Stream& stream, const c10::Stream& other) {
  if (stream == other) return;
  event_.record(other);
  event_.block(stream);
}

void BucketStream::record(const at::Tensor& tensor, const c10::Stream& stream) const {
  guard_.recordDataPtrOnStream(tensor.storage().data_ptr(), stream);
}

bool DeviceBucket::serves(at::ScalarType dtype) { return packed_as(dtype).has_value(); }

DeviceBucket::DeviceBucket(BucketStream& stream, at::Tensor flat, std::vector<size_t> begins,
                           std::vector<size_t> counts, std::optional<at::ScalarType> narrow)
    : stream_(stream), flat_(std::move(flat)) {
  const auto type = flat_.scalar_type();
  const size_t parts = c10::isComplexType(type) ? 2 : 1;
  for (auto& begin : begins) begin *= parts;
  for (auto& count : counts) count *= parts;
  type_ = sent_type_ = packed_as(type).value();
  users_.push_back(stream_.current());  // where it has been allocated
  use(stream_.own());
  stream_.order(stream_.own(), stream_.current());
  const c10::StreamGuard guard(stream_.own());
  packer_ = packer(begins, counts);
  const auto size = size_of(type_);
  for (const size_t begin : begins) {
    places_.push_back(static_cast<std::byte*>(flat_.data_ptr()) + begin * size);
  }
  if (narrow && type == at::kFloat) {
    sent_type_ = packed_as(*narrow).value();
    narrow_ = at::zeros({flat_.numel()}, flat_.options().dtype(*narrow));
    widener_ = packer({0}, {static_cast<size_t>(flat_.numel())});
  }
  // The first launch of a kernel loads it, which may wait for all streams of the process. Now none
  // of them waits for what this backward has yet to send.
  launch_pack(places_, 1);
  unpack();
}

std::unique_ptr<DevicePacker> DeviceBucket::packer(const std::vector<size_t>& begins,
                                                   const std::vector<size_t>& counts) {
  auto made =
      std::make_unique<DevicePacker>(stream_.device(), kernels_of(stream_.where()), begins, counts);
  const auto bytes = static_cast<int64_t>(std::max<size_t>(made->table_bytes(), 1));
  tables_.push_back(at::empty({bytes}, flat_.options().dtype(at::kByte)));
  made->place(tables_.back().data_ptr());
  return made;
}

void DeviceBucket::use(const c10::Stream& stream) {
  if (holds(users_, stream)) return;
  stream_.record(flat_, stream);
  users_.push_back(stream);
}

void DeviceBucket::arrives_on(const c10::Stream& stream) {
  if (!holds(arrivals_, stream)) arrivals_.push_back(stream);
}

void DeviceBucket::order() {
  for (const auto& one : arrivals_) {
    stream_.order(stream_.own(), one);
    use(one);  // backward adds in place
  }
}

void DeviceBucket::pack(const std::vector<void*>& gradients, double factor) {
  if (narrow_.defined() || factor != 1 || gradients != places_) launch_pack(gradients, factor);
}

void DeviceBucket::launch_pack(const std::vector<void*>& gradients, double factor) {
  packed_ = narrow_.defined();
  const DevicePacker::Sides sides{type_, sent().data_ptr(), sent_type_, factor};
  check(packer_->pack(sides, gradients, stream_.own_native()));
}

void DeviceBucket::unpack() {
  if (!std::exchange(packed_, false)) return;
  void* const whole[] = {flat_.data_ptr()};
  check(widener_->unpack({type_, narrow_.data_ptr(), sent_type_}, whole, stream_.own_native()));
}

// What was allocated on the taker's stream may be used again there at once.
void DeviceBucket::let_go(const std::optional<c10::Stream>& taker) {
  if (taker) use(*taker);
  const bool ordered = taker && std::all_of(arrivals_.begin(), arrivals_.end(),
                                            [&](const auto& one) { return one == *taker; });
  if (!ordered) {
    for (const auto& one : kept_) stream_.record(one, stream_.own());
  }
  kept_.clear();
  if (taker) arrivals_.clear();
}

}  // namespace pycomm
