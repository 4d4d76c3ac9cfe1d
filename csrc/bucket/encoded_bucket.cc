// SPDX-License-Identifier: MIT
#include "bucket/encoded_bucket.h"

#include <algorithm>

#include "base/error.h"

namespace pycomm {

EncodedBucket::EncodedBucket(Wire wire, int rank, int world_size, std::vector<BucketPart> parts,
                             size_t exact_below, CpuLevel level)
    : rank_(rank), world_size_(world_size), parts_(std::move(parts)) {
  PYCOMM_USAGE(world_size >= 1 && rank >= 0 && rank < world_size, "encoded bucket: rank ", rank,
               " of ", world_size, "; a rank is at least 0 and less than the world size");
  const auto ranks = static_cast<size_t>(world_size);
  slices_.resize(ranks);
  bytes_.resize(ranks);
  for (size_t p = 0; p < parts_.size(); ++p) {
    const BucketPart& part = parts_[p];
    const Codec& codec = codec_at(level, part.count < exact_below ? Wire::fp32 : wire);
    const size_t block = std::max<size_t>(codec.block, 1);
    const size_t blocks = (part.count + block - 1) / block;
    const size_t most = (blocks + ranks - 1) / ranks * block;
    for (size_t i = 0, begin = 0; begin < part.count; ++i, begin += most) {
      const size_t owner = (i + part.index) % ranks, count = std::min(most, part.count - begin);
      slices_[owner].push_back(
          {p, part.in_bucket + begin, part.in_residuals + begin, count, &codec, bytes_[owner]});
      bytes_[owner] += codec.wire_bytes(count);
    }
    elements_ = std::max(elements_, part.in_bucket + part.count);
    residuals_ = std::max(residuals_, part.in_residuals + part.count);
  }
}

std::vector<std::pair<size_t, size_t>> EncodedBucket::owned() const {
  std::vector<std::pair<size_t, size_t>> ranges;
  for (const Slice& slice : slices_[rank_]) ranges.emplace_back(slice.in_residuals, slice.count);
  return ranges;
}

Residual EncodedBucket::residual_of(const Slice& slice, const ResidualMemories& residuals) const {
  if (!residuals.memories[0]) return {};
  return {residuals.memories[residuals.read[slice.part]] + slice.in_residuals,
          residuals.memories[residuals.write[slice.part]] + slice.in_residuals};
}

void EncodedBucket::encode(const float* bucket, const ResidualMemories& residuals,
                           std::byte* out) const {
  for (int owner = 0; owner < world_size_; ++owner) {
    if (owner == rank_) continue;
    for (const Slice& slice : slices_[owner]) {
      encode_with_residual(*slice.codec, bucket + slice.in_bucket, residual_of(slice, residuals),
                           out + slice.at, slice.count);
    }
    out += bytes_[owner];
  }
}

void EncodedBucket::reduce(float* bucket, const std::byte* received,
                           const ResidualMemories& residuals, std::byte* out) const {
  const size_t bytes = bytes_[rank_];
  std::vector<const std::byte*> encoded(world_size_, nullptr);
  std::vector<const float*> plain(world_size_, nullptr);
  for (const Slice& slice : slices_[rank_]) {
    float* own = bucket + slice.in_bucket;
    for (int source = 0; source < world_size_; ++source) {
      if (source == rank_) continue;
      encoded[source] = received + bytes * (source - (source > rank_)) + slice.at;
    }
    plain[rank_] = own;
    reduce_with_residual(*slice.codec, own, encoded.data(), plain.data(), world_size_, slice.count,
                         world_size_, residual_of(slice, residuals), out + slice.at);
  }
}

void EncodedBucket::decode(const std::byte* const* encoded, float* bucket) const {
  for (int owner = 0; owner < world_size_; ++owner) {
    if (owner == rank_) continue;
    for (const Slice& slice : slices_[owner]) {
      slice.codec->decode(encoded[owner] + slice.at, bucket + slice.in_bucket, slice.count);
    }
  }
}

}  // namespace pycomm
