// SPDX-License-Identifier: MIT
// A gradient bucket as encoded bytes: who owns which elements, and the three passes of an
// all-reduce by the direct algorithm: encode for the owners, reduce at the owner, decode. Each goes
// over the memory once: packing is narrowing, with residuals too, and unpacking is widening.
//
// Every parameter is cut on its own, into slices of whole codec blocks, one for each rank; slice i
// of the parameter with index k is owned by rank (i + k) % world_size. So who owns an element, and
// with which neighbours it shares a scale, depends on its parameter and the world size alone: the
// result has the same bits however parameters are grouped into buckets. A parameter of fewer than
// `exact_below` elements travels as float32.
//
// Bytes for one owner are the encodings of its slices, in the order of the bucket's parameters.
// The owner adds its own values as they are. With residuals, an element that this rank owns keeps
// what the encoding of the sum lost, any other what the encoding of this rank's value lost: one
// number for each element.
//
// Immutable; any thread. Memory is the caller's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "kernels/codec.h"
#include "kernels/error_feedback.h"

namespace pycomm {

// Where the gradient of one parameter lies: elements from the bucket's beginning, and from the
// beginning of a memory of residuals.
struct BucketPart {
  size_t index = 0;  // the parameter's, equal on all ranks
  size_t in_bucket = 0;
  size_t in_residuals = 0;
  size_t count = 0;
};

// The memories of residuals, and for each part of the bucket which is read and which is written.
struct ResidualMemories {
  float* memories[2] = {nullptr, nullptr};  // null: no feedback
  std::vector<uint8_t> read, write;         // 0 or 1, one for each part
};

class EncodedBucket {
 public:
  EncodedBucket(Wire wire, int rank, int world_size, std::vector<BucketPart> parts,
                size_t exact_below, CpuLevel level = best_cpu_level());

  int rank() const { return rank_; }
  int world_size() const { return world_size_; }
  // Of what `owner` owns. encode() makes these for all owners but this rank, reduce() for this one.
  size_t bytes_for(int owner) const { return bytes_[owner]; }
  size_t elements() const { return elements_; }            // the bucket must have
  size_t residual_elements() const { return residuals_; }  // each memory must have
  size_t part_count() const { return parts_.size(); }

  // (offset in the residuals, elements) of all that this rank owns.
  std::vector<std::pair<size_t, size_t>> owned() const;

  // One encoding behind the other, in rank order, nothing for this rank.
  void encode(const float* bucket, const ResidualMemories& residuals, std::byte* out) const;
  // `received`: what the other ranks encoded for this one, in rank order, nothing from this rank.
  // Leaves the mean of what this rank owns in the bucket and encoded in `out`.
  void reduce(float* bucket, const std::byte* received, const ResidualMemories& residuals,
              std::byte* out) const;
  // `encoded[owner]`: what reduce() made there; this rank's is not looked at.
  void decode(const std::byte* const* encoded, float* bucket) const;

 private:
  struct Slice {
    size_t part, in_bucket, in_residuals, count;
    const Codec* codec;
    size_t at;  // bytes from the beginning of its owner's
  };
  Residual residual_of(const Slice& slice, const ResidualMemories& residuals) const;

  const int rank_, world_size_;
  const std::vector<BucketPart> parts_;
  std::vector<std::vector<Slice>> slices_;  // by owner
  std::vector<size_t> bytes_;               // by owner
  size_t elements_ = 0, residuals_ = 0;
};

}  // namespace pycomm
