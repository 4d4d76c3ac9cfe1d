// SPDX-License-Identifier: MIT
// The k-way reduction as the GPU runs it, written so that g++ compiles it too.
//
// Env says which thread this is and how sixteen bytes are moved; nothing here is CUDA's own. nvcc
// instantiates it in cuda_reduce.cu and g++ in cuda_reduce_host.cc, so indices, tails and
// arithmetic are tested bit for bit against the CPU kernels without a GPU. Operators and
// conversions are the CPU's (operators.h, small_floats.h). Up to 8 sources, passed by value in the
// kernel's parameters. Runs on any thread; keeps no memory. The target may be one of the sources.
#pragma once

#include <cstddef>

#include "kernels/operators.h"
#include "kernels/reduce.h"

#ifdef __CUDACC__
#define PYCOMM_UNROLL _Pragma("unroll")
#else
#define PYCOMM_UNROLL _Pragma("GCC unroll 8")
#endif

namespace pycomm {
namespace {

constexpr int kSourcesMax = 8;

struct alignas(16) Bytes16 {
  uint32_t words[4];
};

// Elements [0, head) and the last `tail` are done one by one, what is between in 16-byte vectors.
struct ReduceArguments {
  const char* sources[kSourcesMax];
  char* target;
  int source_count;
  size_t count, head, vectors, tail;
};

// All pointers can be aligned together only if they are equally far from a 16-byte boundary.
inline ReduceArguments split_for_vectors(const ReduceTask& task, size_t element_bytes) {
  ReduceArguments a{};
  a.target = static_cast<char*>(task.target);
  a.source_count = task.source_count;
  a.count = task.count;
  const auto offset = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16; };
  const size_t misaligned = offset(task.target);
  bool together = misaligned % element_bytes == 0;
  for (int s = 0; s < task.source_count; ++s) {
    a.sources[s] = static_cast<const char*>(task.sources[s]);
    together = together && offset(task.sources[s]) == misaligned;
  }
  a.head = together ? (16 - misaligned) % 16 / element_bytes : task.count;
  if (a.head > task.count) a.head = task.count;
  a.vectors = (task.count - a.head) * element_bytes / 16;
  a.tail = task.count - a.head - a.vectors * 16 / element_bytes;
  return a;
}

// How an element becomes what it is computed in, and back.
template <class T>
struct Whole {
  using Code = T;
  using Value = T;
  template <class Env>
  PYCOMM_KERNEL_INLINE static Value widen(const Env&, Code code) {
    return code;
  }
  template <class Env>
  PYCOMM_KERNEL_INLINE static Code narrow(const Env&, Value value) {
    return canonical(value);
  }
};
struct HalfElement {
  using Code = uint16_t;
  using Value = float;
  template <class Env>
  PYCOMM_KERNEL_INLINE static Value widen(const Env& env, Code code) {
    return env.widen_half(code);
  }
  template <class Env>
  PYCOMM_KERNEL_INLINE static Code narrow(const Env& env, Value value) {
    return value == value ? env.narrow_half(value) : static_cast<Code>(kFloat16.nan_code);
  }
};
struct Bfloat16Element {
  using Code = uint16_t;
  using Value = float;
  template <class Env>
  PYCOMM_KERNEL_INLINE static Value widen(const Env&, Code code) {
    return widen_bfloat16<float>(uint32_t{code});
  }
  template <class Env>
  PYCOMM_KERNEL_INLINE static Code narrow(const Env&, Value value) {
    return static_cast<Code>(narrow_bfloat16<float, uint32_t>(value));
  }
};

// The divisor of an average, for one element.
template <class T>
struct Divide {
  int divisor;
  PYCOMM_KERNEL_INLINE T operator()(T value) const {
    if constexpr (std::is_floating_point_v<T>) {
      return value / static_cast<T>(divisor);
    } else {
      return divide_integer(value, divisor);
    }
  }
};

template <class Code>
struct Lanes {
  Code lane[16 / sizeof(Code)];
};

// One vector: all loads are issued before the first is used, and every index is a constant, so the
// sources stay in registers.
template <class Format, class Op, class Finish, class Env>
PYCOMM_KERNEL_INLINE void reduce_vector(const Env& env, const ReduceArguments& a, size_t at,
                                        const Finish& finish) {
  using Code = typename Format::Code;
  constexpr int kLanes = 16 / sizeof(Code);
  Bytes16 in[kSourcesMax];
  PYCOMM_UNROLL
  for (int s = 0; s < kSourcesMax; ++s) {
    if (s < a.source_count) in[s] = env.load16(a.sources[s] + at);
  }
  typename Format::Value values[kLanes];
  Lanes<Code> lanes = __builtin_bit_cast(Lanes<Code>, in[0]);
  PYCOMM_UNROLL
  for (int i = 0; i < kLanes; ++i) values[i] = Format::widen(env, lanes.lane[i]);
  PYCOMM_UNROLL
  for (int s = 1; s < kSourcesMax; ++s) {
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
  env.store16(a.target + at, __builtin_bit_cast(Bytes16, lanes));
}

template <class Format, class Op, class Finish, class Env>
PYCOMM_KERNEL_INLINE void reduce_element(const Env& env, const ReduceArguments& a, size_t i,
                                         const Finish& finish) {
  using Code = typename Format::Code;
  const size_t at = i * sizeof(Code);
  auto value = Format::widen(env, env.template load<Code>(a.sources[0] + at));
  PYCOMM_UNROLL
  for (int s = 1; s < kSourcesMax; ++s) {
    if (s < a.source_count) {
      value = Op::of(value, Format::widen(env, env.template load<Code>(a.sources[s] + at)));
    }
  }
  env.store(a.target + at, Format::narrow(env, finish(value)));
}

// What one thread of the grid does.
template <class Format, class Op, class Finish, class Env>
PYCOMM_KERNEL_INLINE void reduce_body(const Env& env, const ReduceArguments& a,
                                      const Finish& finish) {
  const size_t head_bytes = a.head * sizeof(typename Format::Code);
  for (size_t v = env.thread(); v < a.vectors; v += env.threads()) {
    reduce_vector<Format, Op>(env, a, head_bytes + v * 16, finish);
  }
  for (size_t e = env.thread(); e < a.head + a.tail; e += env.threads()) {
    reduce_element<Format, Op>(env, a, e < a.head ? e : a.count - a.head - a.tail + e, finish);
  }
}

// Calls run.template operator()<Format, Op>(finish) for the task, or returns `unsupported`.
template <class Format, class Run>
int choose_op(const ReduceTask& task, int unsupported, const Run& run) {
  switch (task.op) {
    case ReduceOp::sum:
    case ReduceOp::avg:
      if (task.divisor == 1) return run.template operator()<Format, Sum>(Keep{});
      return run.template operator()<Format, Sum>(Divide<typename Format::Value>{task.divisor});
    case ReduceOp::product:
      return run.template operator()<Format, Product>(Keep{});
    case ReduceOp::min:
      return run.template operator()<Format, Min>(Keep{});
    case ReduceOp::max:
      return run.template operator()<Format, Max>(Keep{});
    default:
      return unsupported;
  }
}

template <class Run>
int choose_kernel(const ReduceTask& task, int unsupported, const Run& run) {
  if (task.source_count < 1 || task.source_count > kSourcesMax || task.divisor < 1) {
    return unsupported;
  }
  switch (task.dtype) {
    case DType::uint8:
      return choose_op<Whole<uint8_t>>(task, unsupported, run);
    case DType::int32:
      return choose_op<Whole<int32_t>>(task, unsupported, run);
    case DType::int64:
      return choose_op<Whole<int64_t>>(task, unsupported, run);
    case DType::float16:
      return choose_op<HalfElement>(task, unsupported, run);
    case DType::bfloat16:
      return choose_op<Bfloat16Element>(task, unsupported, run);
    case DType::float32:
      return choose_op<Whole<float>>(task, unsupported, run);
    case DType::float64:
      return choose_op<Whole<double>>(task, unsupported, run);
    default:
      return unsupported;
  }
}

}  // namespace
}  // namespace pycomm
