// SPDX-License-Identifier: MIT
// The loops of the wire formats: encode, decode, round trip, error feedback and sum, and their
// table.
//
// A sum is accumulated in registers across all sources, part by part, so memory is passed over once
// whatever their number, and the target may be one of them. What does not fill a chunk goes through
// the same code by way of a padded copy: zeros change no scale. Included by the files of the CPU
// levels. In an unnamed namespace for the reason given in small_floats.h. No state, any thread.
#pragma once

#include "kernels/codec_formats.h"
#include "kernels/codec_kernels.h"

namespace pycomm {
namespace {

template <class Wire, class Scale>
PYCOMM_KERNEL_INLINE void decode_chunk(const char* in, float* out, Scale scale) {
  for (size_t at = 0; at < Wire::kChunk; at += kPart) {
    const Part part = Wire::load(in, at);
    for (int i = 0; i < kVectors; ++i) store_floats(out + at + i * kLane, scale(part.v[i]));
  }
}

// A chunk's scale depends on all of it, and its elements wait for the scale: the largest magnitudes
// of a few chunks are found first, so that one chunk's wait is another's work. 256 KiB as fp16s
// took 1.2 times a memcpy instead of 1.6.
template <class Wire, int kChunks, class Scale>
PYCOMM_KERNEL_INLINE void encode_chunks(const float* in, char* out, Scale scale) {
  uint32_t largest[kChunks] = {};
  if constexpr (Wire::kScaled) {
    for (int c = 0; c < kChunks; ++c) {
      largest[c] = largest_bits<Wire::kChunk>(in + c * Wire::kChunk, scale);
    }
  }
  for (int c = 0; c < kChunks; ++c) {
    Wire::encode(in + c * Wire::kChunk, out + c * Wire::kChunkBytes, scale, largest[c]);
  }
}

inline constexpr int kChunksAtOnce = 4;

template <class Wire, class Scale>
void encode_all(const float* in, char* out, size_t count, Scale scale) {
  constexpr size_t kGroup = kChunksAtOnce * Wire::kChunk;
  for (; count >= kGroup; count -= kGroup) {
    encode_chunks<Wire, kChunksAtOnce>(in, out, scale);
    in += kGroup;
    out += kChunksAtOnce * Wire::kChunkBytes;
  }
  for (; count >= Wire::kChunk; count -= Wire::kChunk) {
    encode_chunks<Wire, 1>(in, out, scale);
    in += Wire::kChunk;
    out += Wire::kChunkBytes;
  }
  if (!count) return;
  float padded[Wire::kChunk] = {};
  char encoded[Wire::kChunkBytes];
  __builtin_memcpy(padded, in, count * sizeof(float));
  encode_chunks<Wire, 1>(padded, encoded, scale);
  __builtin_memcpy(out, encoded, Wire::rest_bytes(count));
}

template <class Wire, class Scale>
void decode_all(const char* in, float* out, size_t count, Scale scale) {
  for (; count >= Wire::kChunk; count -= Wire::kChunk) {
    decode_chunk<Wire>(in, out, scale);
    in += Wire::kChunkBytes;
    out += Wire::kChunk;
  }
  if (!count) return;
  char encoded[Wire::kChunkBytes] = {};
  float padded[Wire::kChunk];
  __builtin_memcpy(encoded, in, Wire::rest_bytes(count));
  decode_chunk<Wire>(encoded, padded, scale);
  __builtin_memcpy(out, padded, count * sizeof(float));
}

template <class Wire>
void round_trip_all(float* inout, char* out, size_t count) {
  constexpr size_t kGroup = kChunksAtOnce * Wire::kChunk;
  for (; count >= kGroup; count -= kGroup) {
    encode_chunks<Wire, kChunksAtOnce>(inout, out, Keep{});
    for (int c = 0; c < kChunksAtOnce; ++c) {
      decode_chunk<Wire>(out + c * Wire::kChunkBytes, inout + c * Wire::kChunk, Keep{});
    }
    inout += kGroup;
    out += kChunksAtOnce * Wire::kChunkBytes;
  }
  encode_all<Wire>(inout, out, count, Keep{});
  decode_all<Wire>(out, inout, count, Keep{});
}

PYCOMM_KERNEL_INLINE void add_to(Part& sum, const Part& part) {
  for (int i = 0; i < kVectors; ++i) sum.v[i] += part.v[i];
}

template <class Finish>
PYCOMM_KERNEL_INLINE void store_sum(float* target, Part sum, const Finish& finish) {
  for (int i = 0; i < kVectors; ++i) sum.v[i] = finish(sum.v[i]);
  if (__builtin_expect(any_nan(sum), 0)) {
    for (int i = 0; i < kVectors; ++i) sum.v[i] = canonical(sum.v[i]);
  }
  for (int i = 0; i < kVectors; ++i) store_floats(target + i * kLane, sum.v[i]);
}

// What is wanted of kChunks chunks, what it became and what that lost, while all of it is in the
// first cache.
template <class Wire, int kChunks>
PYCOMM_KERNEL_INLINE void feedback_chunks(const float* values, CodecResidual residual, char* out,
                                          float* decoded) {
  constexpr size_t kCount = kChunks * Wire::kChunk;
  float wanted[kCount];
  for (size_t at = 0; at < kCount; at += kPart) {
    Part sum = load_part(values + at);
    add_to(sum, load_part(residual.before + at));
    store_sum(wanted + at, sum, Keep{});
  }
  encode_chunks<Wire, kChunks>(wanted, out, Keep{});
  for (size_t at = 0; at < kCount; at += kPart) {
    const Part got = Wire::load(out + at / Wire::kChunk * Wire::kChunkBytes, at % Wire::kChunk);
    const Part before = load_part(residual.before + at);
    for (int i = 0; i < kVectors; ++i) {
      const Floats loss = load_floats(wanted + at + i * kLane) - got.v[i];
      const Ints magnitude = __builtin_bit_cast(Ints, loss) & 0x7fffffff;
      const auto finite = magnitude < static_cast<int32_t>(kInfinityBits);
      store_floats(residual.after + at + i * kLane, finite ? loss : before.v[i]);
      if (decoded) store_floats(decoded + at + i * kLane, got.v[i]);
    }
  }
}

template <class Wire>
void feedback_rest(const float* values, const CodecResidual& residual, char* out, float* decoded,
                   size_t count) {
  float padded[Wire::kChunk] = {}, before[Wire::kChunk] = {}, after[Wire::kChunk];
  char encoded[Wire::kChunkBytes];
  __builtin_memcpy(padded, values, count * sizeof(float));
  __builtin_memcpy(before, residual.before, count * sizeof(float));
  feedback_chunks<Wire, 1>(padded, {before, after}, encoded, padded);
  __builtin_memcpy(out, encoded, Wire::rest_bytes(count));
  __builtin_memcpy(residual.after, after, count * sizeof(float));
  if (decoded) __builtin_memcpy(decoded, padded, count * sizeof(float));
}

template <class Wire>
void feedback_all(const float* values, const CodecResidual& residual, char* out, float* decoded,
                  size_t count) {
  CodecResidual here = residual;
  const auto advance = [&](size_t chunks) {
    const size_t elements = chunks * Wire::kChunk;
    values += elements;
    here = {here.before + elements, here.after + elements};
    out += chunks * Wire::kChunkBytes;
    if (decoded) decoded += elements;
    count -= elements;
  };
  while (count >= kChunksAtOnce * Wire::kChunk) {
    feedback_chunks<Wire, kChunksAtOnce>(values, here, out, decoded);
    advance(kChunksAtOnce);
  }
  while (count >= Wire::kChunk) {
    feedback_chunks<Wire, 1>(values, here, out, decoded);
    advance(1);
  }
  if (count) feedback_rest<Wire>(values, here, out, decoded, count);
}

template <class Wire>
struct EncodedSource {
  const char* from;
  PYCOMM_KERNEL_INLINE Part load(size_t chunk, size_t at) const {
    return Wire::load(from + chunk * Wire::kChunkBytes, at);
  }
};
template <class Wire>
struct PlainSource {
  const float* from;
  PYCOMM_KERNEL_INLINE Part load(size_t chunk, size_t at) const {
    return load_part(from + chunk * Wire::kChunk + at);
  }
};

template <class Wire>
PYCOMM_KERNEL_INLINE EncodedSource<Wire> encoded_source(const CodecSources& sources, int s) {
  return {reinterpret_cast<const char*>(sources.encoded[s])};
}
template <class Wire>
PYCOMM_KERNEL_INLINE Part load_source(const CodecSources& sources, int s, size_t chunk, size_t at) {
  if (sources.encoded[s]) return encoded_source<Wire>(sources, s).load(chunk, at);
  return PlainSource<Wire>{sources.plain[s]}.load(chunk, at);
}

template <class Wire, class Finish>
void reduce_chunks(float* target, const CodecSources& sources, size_t chunks,
                   const Finish& finish) {
  for (size_t chunk = 0; chunk < chunks; ++chunk) {
    for (size_t at = 0; at < Wire::kChunk; at += kPart) {
      Part sum = load_source<Wire>(sources, 0, chunk, at);
      for (int s = 1; s < sources.count; ++s) add_to(sum, load_source<Wire>(sources, s, chunk, at));
      store_sum(target + chunk * Wire::kChunk + at, sum, finish);
    }
  }
}

// Two sources of which it is known what they are: what two ranks spend their time on.
template <class Wire, class First, class Second, class Finish>
void add_chunks(float* target, First first, Second second, size_t chunks, const Finish& finish) {
  for (size_t chunk = 0; chunk < chunks; ++chunk) {
    for (size_t at = 0; at < Wire::kChunk; at += kPart) {
      Part sum = first.load(chunk, at);
      add_to(sum, second.load(chunk, at));
      store_sum(target + chunk * Wire::kChunk + at, sum, finish);
    }
  }
}

// The last elements: each source is padded to a chunk in turn.
template <class Wire, class Finish>
void reduce_rest(float* target, const CodecSources& sources, size_t chunk, size_t count,
                 const Finish& finish) {
  float sum[Wire::kChunk] = {};
  for (int s = 0; s < sources.count; ++s) {
    float values[Wire::kChunk] = {};
    if (const std::byte* encoded = sources.encoded[s]) {
      decode_all<Wire>(reinterpret_cast<const char*>(encoded) + chunk * Wire::kChunkBytes, values,
                       count, Keep{});
    } else {
      __builtin_memcpy(values, sources.plain[s] + chunk * Wire::kChunk, count * sizeof(float));
    }
    for (size_t i = 0; i < count; ++i) sum[i] = s ? sum[i] + values[i] : values[i];
  }
  for (size_t i = 0; i < count; ++i) sum[i] = canonical(finish(sum[i]));
  __builtin_memcpy(target, sum, count * sizeof(float));
}

template <class Wire, class Finish>
void reduce_all(float* target, const CodecSources& sources, size_t count, const Finish& finish) {
  const size_t chunks = count / Wire::kChunk, rest = count % Wire::kChunk;
  const bool one_of_two = sources.count == 2 && !sources.encoded[0] != !sources.encoded[1];
  if (one_of_two && sources.encoded[0]) {
    add_chunks<Wire>(target, encoded_source<Wire>(sources, 0), PlainSource<Wire>{sources.plain[1]},
                     chunks, finish);
  } else if (one_of_two) {
    add_chunks<Wire>(target, PlainSource<Wire>{sources.plain[0]}, encoded_source<Wire>(sources, 1),
                     chunks, finish);
  } else {
    reduce_chunks<Wire>(target, sources, chunks, finish);
  }
  if (rest) reduce_rest<Wire>(target + count - rest, sources, chunks, rest, finish);
}

template <class Wire>
void reduce_wire(float* target, const CodecSources& sources, size_t count, int divisor) {
  if (divisor == 1) return reduce_all<Wire>(target, sources, count, Keep{});
  const auto by = static_cast<float>(divisor);
  if (is_power_of_two(divisor)) {
    return reduce_all<Wire>(target, sources, count, Times<float>{1.0f / by});
  }
  return reduce_all<Wire>(target, sources, count, Over<float>{by});
}

template <class Wire>
void encode_wire(const float* in, char* out, size_t count, float scale) {
  if (scale == 1.0f) return encode_all<Wire>(in, out, count, Keep{});
  encode_all<Wire>(in, out, count, Times<float>{scale});
}

template <class Wire>
void decode_wire(const char* in, float* out, size_t count, float scale) {
  if (scale == 1.0f) return decode_all<Wire>(in, out, count, Keep{});
  decode_all<Wire>(in, out, count, Times<float>{scale});
}

template <class Wire>
constexpr CodecKernels codec_of() {
  return {encode_wire<Wire>, decode_wire<Wire>, round_trip_all<Wire>, feedback_all<Wire>,
          reduce_wire<Wire>};
}

// In the order of enum Wire.
constexpr CodecKernels kCodecs[] = {codec_of<Fp32Wire>(), codec_of<Bf16Wire>(),
                                    codec_of<Fp16sWire>(), codec_of<IntegerWire<Int8Wire>>(),
                                    codec_of<IntegerWire<Int4Wire>>()};

}  // namespace
}  // namespace pycomm
