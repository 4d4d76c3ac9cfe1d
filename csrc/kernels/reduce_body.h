// SPDX-License-Identifier: MIT
// The k-way reduction as a GPU runs it: up to 64 sources in order, in one pass, into up to 8
// targets.
//
// nvcc instantiates it in cuda_reduce.cu and g++ in host_kernels.cc. The arithmetic is that of
// reduce() in reduce.h, bit for bit. Sums of at most 8 sources have all their loads in flight at
// once; anything else takes one source at a time. Targets may be sources. See device_env.h for what
// a body is.
#pragma once

#include "kernels/device_formats.h"
#include "kernels/reduce.h"

namespace pycomm {
namespace {

constexpr int kSourcesMax = 64;
constexpr int kTargetsMax = 8;
constexpr int kUnrolledSources = 8;

// Elements [0, head) and the last `tail` are done one by one, what is between in 16-byte vectors.
struct ReduceArguments {
  const char* sources[kSourcesMax];
  char* targets[kTargetsMax];
  int source_count, target_count;
  int divisor;
  ReduceOp op;
  size_t count, head, vectors, tail;
};

PYCOMM_KERNEL_INLINE size_t bytes_past_16(const void* address) {
  return reinterpret_cast<uintptr_t>(address) % 16;
}

// All pointers can be aligned together only if they are equally far from a 16-byte boundary.
PYCOMM_KERNEL_INLINE void split_for_vectors(ReduceArguments& a, size_t element_bytes) {
  const size_t misaligned = bytes_past_16(a.targets[0]);
  bool together = misaligned % element_bytes == 0;
  for (int s = 0; s < a.source_count; ++s) {
    together = together && bytes_past_16(a.sources[s]) == misaligned;
  }
  for (int t = 0; t < a.target_count; ++t) {
    together = together && bytes_past_16(a.targets[t]) == misaligned;
  }
  a.head = together ? (16 - misaligned) % 16 / element_bytes : a.count;
  if (a.head > a.count) a.head = a.count;
  a.vectors = (a.count - a.head) * element_bytes / 16;
  a.tail = a.count - a.head - a.vectors * 16 / element_bytes;
}

// The end of a sum of floats: a multiplication by 1 or by the reciprocal of a power of two is
// exact, any other divisor has to be divided by to keep the one rounding.
template <class T>
struct FinishSum {
  T factor = 1;
  T divisor = 1;
  int whole = 1;
  PYCOMM_KERNEL_INLINE explicit FinishSum(int n) : whole(n) {
    if (is_power_of_two(n)) {
      factor = T{1} / static_cast<T>(n);
    } else {
      divisor = static_cast<T>(n);
    }
  }
  PYCOMM_KERNEL_INLINE T operator()(T value) const {
    if constexpr (std::is_floating_point_v<T>) {
      return divisor == T{1} ? value * factor : value / divisor;
    } else {
      return whole == 1 ? value : divide_integer(value, whole);
    }
  }
};
template <class T>
struct MultiplySum {
  T factor;
  PYCOMM_KERNEL_INLINE T operator()(T value) const {
    if constexpr (std::is_floating_point_v<T>) {
      return value * factor;
    } else {
      return value;
    }
  }
};

template <class Code, class Env>
PYCOMM_KERNEL_INLINE Lanes<Code> load_lanes(const Env& env, const char* from) {
  return __builtin_bit_cast(Lanes<Code>, env.load16(from));
}

template <class Env>
PYCOMM_KERNEL_INLINE void store_everywhere(const Env& env, const ReduceArguments& a, size_t at,
                                           Bytes16 bytes) {
  for (int t = 0; t < a.target_count; ++t) env.store16(a.targets[t] + at, bytes);
}

// One vector of at most kUnrolledSources: all loads are issued before the first is used, and every
// index is a constant, so the sources stay in registers.
template <class Format, class Op, class Finish, class Env>
PYCOMM_KERNEL_INLINE void reduce_vector_unrolled(const Env& env, const ReduceArguments& a,
                                                 size_t at, const Finish& finish) {
  using Code = typename Format::Code;
  constexpr int kLanes = 16 / sizeof(Code);
  Bytes16 in[kUnrolledSources];
  PYCOMM_UNROLL
  for (int s = 0; s < kUnrolledSources; ++s) {
    if (s < a.source_count) in[s] = env.load16(a.sources[s] + at);
  }
  typename Format::Value values[kLanes];
  Lanes<Code> lanes = __builtin_bit_cast(Lanes<Code>, in[0]);
  PYCOMM_UNROLL
  for (int i = 0; i < kLanes; ++i) values[i] = Format::widen(env, lanes.lane[i]);
  PYCOMM_UNROLL
  for (int s = 1; s < kUnrolledSources; ++s) {
    if (s < a.source_count) {
      lanes = __builtin_bit_cast(Lanes<Code>, in[s]);
      PYCOMM_UNROLL
      for (int i = 0; i < kLanes; ++i) {
        values[i] = Op::of(values[i], Format::widen(env, lanes.lane[i]));
      }
    }
  }
  PYCOMM_UNROLL
  for (int i = 0; i < kLanes; ++i) lanes.lane[i] = Format::narrow(env, finish(values[i]));
  store_everywhere(env, a, at, __builtin_bit_cast(Bytes16, lanes));
}

template <class Format, class Op, class Finish, class Env>
PYCOMM_KERNEL_INLINE void reduce_vector(const Env& env, const ReduceArguments& a, size_t at,
                                        const Finish& finish) {
  using Code = typename Format::Code;
  constexpr int kLanes = 16 / sizeof(Code);
  typename Format::Value values[kLanes];
  Lanes<Code> lanes = load_lanes<Code>(env, a.sources[0] + at);
  PYCOMM_UNROLL
  for (int i = 0; i < kLanes; ++i) values[i] = Format::widen(env, lanes.lane[i]);
  for (int s = 1; s < a.source_count; ++s) {
    lanes = load_lanes<Code>(env, a.sources[s] + at);
    PYCOMM_UNROLL
    for (int i = 0; i < kLanes; ++i) {
      values[i] = Op::of(values[i], Format::widen(env, lanes.lane[i]));
    }
  }
  PYCOMM_UNROLL
  for (int i = 0; i < kLanes; ++i) lanes.lane[i] = Format::narrow(env, finish(values[i]));
  store_everywhere(env, a, at, __builtin_bit_cast(Bytes16, lanes));
}

template <class Format, class Op, class Finish, class Env>
PYCOMM_KERNEL_INLINE void reduce_element(const Env& env, const ReduceArguments& a, size_t i,
                                         const Finish& finish) {
  using Code = typename Format::Code;
  const size_t at = i * sizeof(Code);
  auto value = Format::widen(env, env.template load<Code>(a.sources[0] + at));
  for (int s = 1; s < a.source_count; ++s) {
    value = Op::of(value, Format::widen(env, env.template load<Code>(a.sources[s] + at)));
  }
  const Code code = Format::narrow(env, finish(value));
  for (int t = 0; t < a.target_count; ++t) env.store(a.targets[t] + at, code);
}

// What one thread does of `a`, as number place.first of place.step.
template <bool kUnrolled, class Format, class Op, class Finish, class Env>
PYCOMM_KERNEL_INLINE void reduce_share(const Env& env, const ReduceArguments& a, GridPlace place,
                                       const Finish& finish) {
  const size_t head_bytes = a.head * sizeof(typename Format::Code);
  for (size_t v = place.first; v < a.vectors; v += place.step) {
    if constexpr (kUnrolled) {
      reduce_vector_unrolled<Format, Op>(env, a, head_bytes + v * 16, finish);
    } else {
      reduce_vector<Format, Op>(env, a, head_bytes + v * 16, finish);
    }
  }
  for (size_t e = place.first; e < a.head + a.tail; e += place.step) {
    reduce_element<Format, Op>(env, a, e < a.head ? e : a.count - a.head - a.tail + e, finish);
  }
}

template <class Format, class Env>
PYCOMM_KERNEL_INLINE void sum_share(const Env& env, const ReduceArguments& a, GridPlace place) {
  using Value = typename Format::Value;
  const FinishSum<Value> finish(a.divisor);
  const bool exact = std::is_integral_v<Value> ? a.divisor == 1 : is_power_of_two(a.divisor);
  if constexpr (Format::kUnrolled) {
    if (exact && a.source_count <= kUnrolledSources) {
      return reduce_share<true, Format, Sum>(env, a, place, MultiplySum<Value>{finish.factor});
    }
  }
  reduce_share<false, Format, Sum>(env, a, place, finish);
}

template <class Format, class Env>
PYCOMM_KERNEL_INLINE void reduce_share_by_op(const Env& env, const ReduceArguments& a,
                                             GridPlace place) {
  constexpr Arithmetic kKind = Format::kArithmetic;
  const auto with = [&]<class Op>(Op) { reduce_share<false, Format, Op>(env, a, place, Keep{}); };
  if constexpr (kKind == Arithmetic::complex) {
    with(ComplexProduct{});
  } else if constexpr (kKind == Arithmetic::boolean) {
    if (a.op == ReduceOp::bxor) return with(BitXor{});
    const bool any = a.op == ReduceOp::sum || a.op == ReduceOp::max || a.op == ReduceOp::bor;
    any ? with(BitOr{}) : with(BitAnd{});
  } else {
    if (a.op == ReduceOp::sum || a.op == ReduceOp::avg) return sum_share<Format>(env, a, place);
    if (a.op == ReduceOp::product) return with(Product{});
    if (a.op == ReduceOp::min) return with(Min{});
    if (a.op == ReduceOp::max) return with(Max{});
    if constexpr (kKind == Arithmetic::integer) {
      if (a.op == ReduceOp::band) return with(BitAnd{});
      if (a.op == ReduceOp::bor) return with(BitOr{});
      if (a.op == ReduceOp::bxor) return with(BitXor{});
    }
  }
}

template <class Format>
struct ReduceBody {
  static constexpr int kThreads = 256;
  // What fits: eight 16-byte vectors in flight take 64 registers.
  static constexpr int kBlocksPerProcessor = 4;
  ReduceArguments arguments;
  template <class Env>
  PYCOMM_KERNEL_INLINE void operator()(const Env& env) const {
    env.each_thread([&](int thread) {
      reduce_share_by_op<Format>(env, arguments, place_in_grid(env, thread));
    });
  }
};

// Calls run.template operator()<Format>() for the format in which `op` sees the dtype's elements.
template <class Run>
int with_format(ReduceOp op, DType dtype, const Run& run) {
  const bool complex_product = op == ReduceOp::product;
  switch (dtype) {
    case DType::uint8:
      return run.template operator()<Whole<uint8_t>>();
    case DType::int8:
      return run.template operator()<Whole<int8_t>>();
    case DType::uint16:
      return run.template operator()<Whole<uint16_t>>();
    case DType::int16:
      return run.template operator()<Whole<int16_t>>();
    case DType::uint32:
      return run.template operator()<Whole<uint32_t>>();
    case DType::int32:
      return run.template operator()<Whole<int32_t>>();
    case DType::uint64:
      return run.template operator()<Whole<uint64_t>>();
    case DType::int64:
      return run.template operator()<Whole<int64_t>>();
    case DType::boolean:
      return run.template operator()<BooleanElement>();
    case DType::complex32:
      if (complex_product) return run.template operator()<ComplexElement<HalfElement>>();
      [[fallthrough]];
    case DType::float16:
      return run.template operator()<HalfElement>();
    case DType::bfloat16:
      return run.template operator()<Bfloat16Element>();
    case DType::complex64:
      if (complex_product) return run.template operator()<ComplexElement<Whole<float>>>();
      [[fallthrough]];
    case DType::float32:
      return run.template operator()<Whole<float>>();
    case DType::complex128:
      if (complex_product) return run.template operator()<ComplexElement<Whole<double>>>();
      [[fallthrough]];
    case DType::float64:
      return run.template operator()<Whole<double>>();
    case DType::float8_e4m3fn:
      return run.template operator()<SmallElement<kE4m3fn>>();
    case DType::float8_e5m2:
      return run.template operator()<SmallElement<kE5m2>>();
    case DType::float8_e4m3fnuz:
      return run.template operator()<SmallElement<kE4m3fnuz>>();
    case DType::float8_e5m2fnuz:
      return run.template operator()<SmallElement<kE5m2fnuz>>();
    case DType::float8_e8m0fnu:
      return run.template operator()<E8m0Element>();
  }
  return 1;
}

}  // namespace
}  // namespace pycomm
