// SPDX-License-Identifier: MIT
// Element types, reduce operations and collectives: the three enumerations every floor shares.
//
// They are plain values with stable numeric codes (the codes travel in frame headers, so both ends
// of a channel must agree on them) and print under PyTorch's names. Thread-safe: constants and pure
// functions only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace pycomm {

enum class DType : uint8_t {
  uint8,
  int8,
  int16,
  int32,
  int64,
  uint16,
  uint32,
  uint64,
  boolean,
  float16,
  bfloat16,
  float32,
  float64,
  complex32,
  complex64,
  complex128,
  float8_e4m3fn,
  float8_e5m2,
  float8_e4m3fnuz,
  float8_e5m2fnuz,
  float8_e8m0fnu,
};
inline constexpr int kDTypeCount = 21;

// avg divides the sum by the world size (integers: truncating division). premul_sum multiplies
// every rank's input by that rank's factor before summing; the kernels below the engine never see
// it.
enum class ReduceOp : uint8_t { sum, avg, product, min, max, band, bor, bxor, premul_sum };
inline constexpr int kReduceOpCount = 9;

enum class Collective : uint8_t {
  all_reduce,
  broadcast,
  reduce,
  all_gather,
  gather,
  scatter,
  reduce_scatter,
  all_to_all,
  barrier,
  send,
  recv,
};
inline constexpr int kCollectiveCount = 11;

size_t size_of(DType dtype);
std::string_view name_of(DType dtype);
std::string_view name_of(ReduceOp op);
std::string_view name_of(Collective collective);

bool is_floating(DType dtype);  // float16 ... float64 and the 8-bit floats; not complex
bool is_complex(DType dtype);

// Whether `op` has a meaning on `dtype`: bitwise operations need integers or booleans, min and max
// need an order, so complex numbers have neither.
bool supports(ReduceOp op, DType dtype);

}  // namespace pycomm
