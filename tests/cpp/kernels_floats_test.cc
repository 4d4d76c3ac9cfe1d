// SPDX-License-Identifier: MIT
// The 8- and 16-bit floats, exhaustively: every code, every pair of 8-bit codes, and known vectors.
#include <cmath>

#include "check.h"
#include "kernels/cpu_kernels.h"
#include "kernels/reduce.h"
#include "kernels/small_floats.h"
#include "kernels_reference.h"

using namespace pycomm;

namespace {

constexpr DType kSmall[] = {DType::float8_e4m3fn,   DType::float8_e5m2,    DType::float8_e4m3fnuz,
                            DType::float8_e5m2fnuz, DType::float8_e8m0fnu, DType::float16,
                            DType::bfloat16};

unsigned narrow_scalar(DType dtype, float value) {
  switch (dtype) {
    case DType::float16:
      return narrow<kFloat16, float, uint32_t>(value);
    case DType::bfloat16:
      return narrow_bfloat16<float, uint32_t>(value);
    case DType::float8_e4m3fn:
      return narrow<kE4m3fn, float, uint32_t>(value);
    case DType::float8_e5m2:
      return narrow<kE5m2, float, uint32_t>(value);
    case DType::float8_e4m3fnuz:
      return narrow<kE4m3fnuz, float, uint32_t>(value);
    case DType::float8_e5m2fnuz:
      return narrow<kE5m2fnuz, float, uint32_t>(value);
    default:
      return narrow_e8m0<float, uint32_t>(value);
  }
}

float widen_scalar(DType dtype, uint32_t code) {
  switch (dtype) {
    case DType::float16:
      return widen<kFloat16, float>(code);
    case DType::bfloat16:
      return widen_bfloat16<float>(code);
    case DType::float8_e4m3fn:
      return widen<kE4m3fn, float>(code);
    case DType::float8_e5m2:
      return widen<kE5m2, float>(code);
    case DType::float8_e4m3fnuz:
      return widen<kE4m3fnuz, float>(code);
    case DType::float8_e5m2fnuz:
      return widen<kE5m2fnuz, float>(code);
    default:
      return widen_e8m0<float>(code);
  }
}

void check_narrow(DType dtype, float value) {
  const unsigned got = narrow_scalar(dtype, value);
  const unsigned want = reference::encode_small(dtype, value);
  // The conversion keeps a NaN's sign; reduce() passes it none.
  const unsigned sign = std::isnan(value) && std::signbit(value) ? ~0u : 0u;
  CHECK(got == want || (sign && (got & 0x7fff) != 0), name_of(dtype), " of ", value, " is ", got,
        ", expected ", want);
}

}  // namespace

TEST("every code widens to its value and narrows back to itself") {
  for (DType dtype : kSmall) {
    for (unsigned code = 0; code < 1u << (8 * size_of(dtype)); ++code) {
      const float value = widen_scalar(dtype, code);
      const float expected = reference::decode_small(dtype, code);
      CHECK(std::isnan(expected) ? std::isnan(value) : std::memcmp(&value, &expected, 4) == 0,
            name_of(dtype), " code ", code, " is ", value, ", expected ", expected);
      if (!std::isnan(value)) CHECK(narrow_scalar(dtype, value) == code, name_of(dtype), code);
    }
  }
}

TEST("every code, its neighbours and the halfway points round as the nearest code says") {
  for (DType dtype : kSmall) {
    for (unsigned code = 0; code < 1u << (8 * size_of(dtype)); ++code) {
      const float value = widen_scalar(dtype, code);
      const float next = widen_scalar(dtype, code + 1);
      const float halfway = value / 2 + next / 2;
      for (float x : {value, halfway}) {
        check_narrow(dtype, x);
        check_narrow(dtype, std::nextafter(x, INFINITY));
        check_narrow(dtype, std::nextafter(x, -INFINITY));
      }
    }
  }
}

TEST("float32 values spread over all exponents narrow as the nearest code says") {
  for (DType dtype : kSmall) {
    for (uint64_t bits = 0; bits < 1ull << 32; bits += 65521) {
      check_narrow(dtype, __builtin_bit_cast(float, static_cast<uint32_t>(bits)));
    }
  }
}

TEST("known vectors, from PyTorch 2.13") {
  const float inputs[] = {448,   464,   465, 1e9f, -INFINITY, 57344,
                          61440, 65536, 240, 248,  -0.0f,     1e-40f};
  const unsigned expected[][12] = {
      {0x7e, 0x7e, 0x7e, 0x7e, 0xfe, 0x7e, 0x7e, 0x7e, 0x77, 0x78, 0x80, 0},  // e4m3fn
      {0x5f, 0x5f, 0x5f, 0x7c, 0xfc, 0x7b, 0x7c, 0x7c, 0x5c, 0x5c, 0x80, 0},  // e5m2
      {0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x7f, 0x80, 0, 0},     // e4m3fnuz
      {0x63, 0x63, 0x63, 0x80, 0x80, 0x7f, 0x80, 0x80, 0x60, 0x60, 0, 0},     // e5m2fnuz
      {136, 136, 136, 157, 255, 143, 143, 143, 135, 135, 0, 0},               // e8m0fnu
  };
  for (int d = 0; d < 5; ++d) {
    for (int i = 0; i < 12; ++i) {
      const unsigned got = narrow_scalar(kSmall[d], inputs[i]);
      CHECK(got == expected[d][i], name_of(kSmall[d]), " of ", inputs[i], " is ", got);
    }
  }
}

TEST("the sum of every pair of 8-bit floats is the same at every level") {
  std::vector<char> a(1 << 16), b(1 << 16), expected(1 << 16), out(1 << 16);
  for (int i = 0; i < 1 << 16; ++i) a[i] = static_cast<char>(i), b[i] = static_cast<char>(i >> 8);
  const void* sources[] = {a.data(), b.data()};
  for (DType dtype : kSmall) {
    if (size_of(dtype) != 1) continue;
    const reference::Case c{ReduceOp::sum, dtype, 1, {a.data(), b.data()}};
    for (size_t i = 0; i < a.size(); ++i) reference::element(c, i, &expected[i]);
    for (int level = 0; level <= static_cast<int>(hardware_cpu_level()); ++level) {
      reduce_at(static_cast<CpuLevel>(level),
                {ReduceOp::sum, dtype, out.data(), sources, 2, out.size(), 1});
      CHECK(out == expected, name_of(dtype), " at level ", level);
    }
  }
}
