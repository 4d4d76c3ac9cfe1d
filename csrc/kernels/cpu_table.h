// SPDX-License-Identifier: MIT
// From (dtype, op) to a loop: the one switch that each CPU level compiles for itself.
//
// Included by cpu_scalar.cc, cpu_avx2.cc and cpu_avx512.cc after PYCOMM_VECTOR_BYTES is set. In an
// unnamed namespace for the reason given in small_floats.h. No state, any thread.
#pragma once

#include "kernels/cpu_half_formats.h"
#include "kernels/cpu_loops.h"

namespace pycomm {
namespace {

// Lane by lane: there is no vector instruction for it.
template <class T>
struct IntegerOver {
  int divisor;
  template <class V>
  PYCOMM_KERNEL_INLINE V operator()(V v) const {
    T lanes[sizeof(V) / sizeof(T)];
    __builtin_memcpy(lanes, &v, sizeof(V));
    for (T& lane : lanes) lane = divide_integer(lane, divisor);
    __builtin_memcpy(&v, lanes, sizeof(V));
    return v;
  }
};

template <class T>
void reduce_integers(const ReduceTask& task) {
  using Unsigned = Native<std::make_unsigned_t<T>>;
  switch (task.op) {
    case ReduceOp::sum:
    case ReduceOp::avg:
      if (task.divisor != 1) {
        return reduce_loop<Unsigned, Sum>(task, IntegerOver<T>{task.divisor});
      }
      return reduce_sum<Unsigned>(task);
    case ReduceOp::product:
      return reduce_loop<Unsigned, Product>(task, Keep{});
    case ReduceOp::min:
      return reduce_loop<Native<T>, Min>(task, Keep{});
    case ReduceOp::max:
      return reduce_loop<Native<T>, Max>(task, Keep{});
    case ReduceOp::band:
      return reduce_loop<Unsigned, BitAnd>(task, Keep{});
    case ReduceOp::bor:
      return reduce_loop<Unsigned, BitOr>(task, Keep{});
    case ReduceOp::bxor:
      return reduce_loop<Unsigned, BitXor>(task, Keep{});
    case ReduceOp::premul_sum:
      return;
  }
}

void reduce_booleans(const ReduceTask& task) {
  switch (task.op) {
    case ReduceOp::sum:
    case ReduceOp::max:
    case ReduceOp::bor:
      return reduce_loop<Boolean, BitOr>(task, Keep{});
    case ReduceOp::product:
    case ReduceOp::min:
    case ReduceOp::band:
      return reduce_loop<Boolean, BitAnd>(task, Keep{});
    case ReduceOp::bxor:
      return reduce_loop<Boolean, BitXor>(task, Keep{});
    case ReduceOp::avg:
    case ReduceOp::premul_sum:
      return;
  }
}

template <class Format>
void reduce_floats(const ReduceTask& task) {
  using T = typename Format::Scalar;
  switch (task.op) {
    case ReduceOp::sum:
    case ReduceOp::avg:
      if (task.divisor == 1) return reduce_sum<Format>(task);
      if (is_power_of_two(task.divisor)) {
        return reduce_loop<Format, Sum>(task, Times<T>{T{1} / static_cast<T>(task.divisor)});
      }
      return reduce_loop<Format, Sum>(task, Over<T>{static_cast<T>(task.divisor)});
    case ReduceOp::product:
      return reduce_loop<Format, Product>(task, Keep{});
    case ReduceOp::min:
      return reduce_loop<Format, Min>(task, Keep{});
    case ReduceOp::max:
      return reduce_loop<Format, Max>(task, Keep{});
    default:
      return;
  }
}

template <class Number, class Format>
void reduce_complex(ReduceTask task) {
  if (task.op == ReduceOp::product) return reduce_loop<Number, ComplexProduct>(task, Keep{});
  task.count *= 2;
  reduce_floats<Format>(task);
}

void reduce_any(const ReduceTask& task) {
  switch (task.dtype) {
    case DType::uint8:
      return reduce_integers<uint8_t>(task);
    case DType::int8:
      return reduce_integers<int8_t>(task);
    case DType::int16:
      return reduce_integers<int16_t>(task);
    case DType::int32:
      return reduce_integers<int32_t>(task);
    case DType::int64:
      return reduce_integers<int64_t>(task);
    case DType::uint16:
      return reduce_integers<uint16_t>(task);
    case DType::uint32:
      return reduce_integers<uint32_t>(task);
    case DType::uint64:
      return reduce_integers<uint64_t>(task);
    case DType::boolean:
      return reduce_booleans(task);
    case DType::float16:
      return reduce_floats<Float16>(task);
    case DType::bfloat16:
      return reduce_floats<Bfloat16>(task);
    case DType::float32:
      return reduce_floats<Native<float>>(task);
    case DType::float64:
      return reduce_floats<Native<double>>(task);
    case DType::complex32:
      return reduce_complex<ComplexHalf, Float16>(task);
    case DType::complex64:
      return reduce_complex<Complex<float>, Native<float>>(task);
    case DType::complex128:
      return reduce_complex<Complex<double>, Native<double>>(task);
    case DType::float8_e4m3fn:
      return reduce_floats<Small<kE4m3fn>>(task);
    case DType::float8_e5m2:
      return reduce_floats<Small<kE5m2>>(task);
    case DType::float8_e4m3fnuz:
      return reduce_floats<Small<kE4m3fnuz>>(task);
    case DType::float8_e5m2fnuz:
      return reduce_floats<Small<kE5m2fnuz>>(task);
    case DType::float8_e8m0fnu:
      return reduce_floats<E8m0>(task);
  }
}

// A product with a factor is a reduction of one source that ends in a multiplication.
template <class Format>
void scale_floats(const ReduceTask& task, double factor) {
  using T = typename Format::Scalar;
  reduce_loop<Format, Sum>(task, Times<T>{static_cast<T>(factor)});
}

void scale_any(DType dtype, const void* in, void* out, size_t count, double factor) {
  ReduceTask task{ReduceOp::sum, dtype, out, &in, 1, count, 1};
  if (is_complex(dtype)) task.count *= 2;
  switch (dtype) {
    case DType::float16:
    case DType::complex32:
      return scale_floats<Float16>(task, factor);
    case DType::bfloat16:
      return scale_floats<Bfloat16>(task, factor);
    case DType::float32:
    case DType::complex64:
      return scale_floats<Native<float>>(task, factor);
    case DType::float64:
    case DType::complex128:
      return scale_floats<Native<double>>(task, factor);
    case DType::float8_e4m3fn:
      return scale_floats<Small<kE4m3fn>>(task, factor);
    case DType::float8_e5m2:
      return scale_floats<Small<kE5m2>>(task, factor);
    case DType::float8_e4m3fnuz:
      return scale_floats<Small<kE4m3fnuz>>(task, factor);
    case DType::float8_e5m2fnuz:
      return scale_floats<Small<kE5m2fnuz>>(task, factor);
    case DType::float8_e8m0fnu:
      return scale_floats<E8m0>(task, factor);
    default:
      return;
  }
}

}  // namespace
}  // namespace pycomm
