// SPDX-License-Identifier: MIT
// The loops of a CPU reduction, written once over formats (cpu_formats.h) and operators
// (operators.h).
//
// A block of units is accumulated in registers across all sources before it is stored, so memory is
// passed over once whatever the number of sources, and the target may be one of them. The last
// elements go through the same vector code by way of a padded copy: body and tail cannot differ.
// In an unnamed namespace for the reason given in small_floats.h. No state, any thread.
#pragma once

#include "kernels/cpu_formats.h"
#include "kernels/cpu_rest.h"
#include "kernels/reduce.h"

namespace pycomm {
namespace {

// Where the result goes. Kept here, not read through ReduceTask: the stores go through char* and
// would make the compiler reload it. `Copies` is their number where it is known when this is
// compiled, else kSomeCopies.
inline constexpr int kSomeCopies = -1;
template <int Copies>
struct Targets {
  char* first;
  char* second;
  void* const* copies;
  int copy_count;

  explicit Targets(const ReduceTask& task)
      : first(static_cast<char*>(task.target)),
        second(Copies == 1 ? static_cast<char*>(task.copies[0]) : nullptr),
        copies(task.copies),
        copy_count(task.copy_count) {}
  int count() const { return Copies == kSomeCopies ? copy_count : Copies; }
  char* copy(int c) const { return Copies == 1 ? second : static_cast<char*>(copies[c]); }
};

// One block: `Units` units accumulated in registers across all sources. K is the number of sources
// when it is known at compile time, else 0.
template <class Format, class Op, int Units, int K, int Copies, class Finish>
PYCOMM_KERNEL_INLINE void reduce_block(const Targets<Copies>& targets, const char* const* sources,
                                       int source_count, size_t at, const Finish& finish) {
  constexpr size_t kStep = size_t{Format::kElements} * Format::kElementBytes;
  typename Format::Unit units[Units];
#pragma GCC unroll 4
  for (int u = 0; u < Units; ++u) units[u] = Format::load(sources[0] + at + u * kStep);
  const int end = K ? K : source_count;
  for (int s = 1; s < end; ++s) {
    const char* from = sources[s] + at;
#pragma GCC unroll 4
    for (int u = 0; u < Units; ++u) {
      units[u] = combine<Op>(units[u], Format::load(from + u * kStep));
    }
  }
  using Packed = decltype(Format::pack(units[0]));
  Packed packed[Units];
#pragma GCC unroll 4
  for (int u = 0; u < Units; ++u) {
    packed[u] = Format::pack(each(finish, units[u]));
    store_as(targets.first + at + u * kStep, packed[u]);
  }
  for (int c = 0; c < targets.count(); ++c) {
    char* const to = targets.copy(c) + at;
#pragma GCC unroll 4
    for (int u = 0; u < Units; ++u) store_as(to + u * kStep, packed[u]);
  }
}

// Fewer elements than a unit holds.
template <class Format, class Op, int Copies, class Finish>
inline void reduce_rest(const Targets<Copies>& targets, const char* const* sources,
                        int source_count, size_t at, size_t bytes, const Finish& finish) {
  char unit[size_t{Format::kElements} * Format::kElementBytes];
  load_rest(unit, sources[0] + at, bytes);
  auto a = Format::load(unit);
  for (int s = 1; s < source_count; ++s) {
    load_rest(unit, sources[s] + at, bytes);
    a = combine<Op>(a, Format::load(unit));
  }
  store_as(unit, Format::pack(each(finish, a)));
  store_rest(targets.first + at, unit, bytes);
  for (int c = 0; c < targets.count(); ++c) {
    store_rest(targets.copy(c) + at, unit, bytes);
  }
}

template <class Format, class Op, int K = 0, int Copies = kSomeCopies, class Finish>
void reduce_loop(const ReduceTask& task, const Finish& finish) {
  constexpr size_t kStep = size_t{Format::kElements} * Format::kElementBytes;
  constexpr int kUnits = 4;  // per block: enough additions in flight to hide their latency
  const Targets<Copies> targets(task);
  const char* const* sources = reinterpret_cast<const char* const*>(task.sources);
  const size_t bytes = task.count * Format::kElementBytes;
  size_t at = 0;
  if constexpr (K > 0) {
    // Pointers in registers: the stores go through char* and would make the compiler reload them.
    const char* fixed[K];
    for (int s = 0; s < K; ++s) fixed[s] = sources[s];
    for (; bytes - at >= kUnits * kStep; at += kUnits * kStep) {
      reduce_block<Format, Op, kUnits, K>(targets, fixed, K, at, finish);
    }
  } else {
    for (; bytes - at >= kUnits * kStep; at += kUnits * kStep) {
      reduce_block<Format, Op, kUnits, 0>(targets, sources, task.source_count, at, finish);
    }
  }
  for (; bytes - at >= kStep; at += kStep) {
    reduce_block<Format, Op, 1, 0>(targets, sources, task.source_count, at, finish);
  }
  if (bytes > at) {
    reduce_rest<Format, Op>(targets, sources, task.source_count, at, bytes - at, finish);
  }
}

// Sums of two, three and four sources are what collectives spend their time on, and sums of two
// into both what two ranks do in each other's memory.
template <class Format>
void reduce_sum(const ReduceTask& task) {
  switch (task.source_count) {
    case 2:
      if (task.copy_count == 1) return reduce_loop<Format, Sum, 2, 1>(task, Keep{});
      return reduce_loop<Format, Sum, 2>(task, Keep{});
    case 3:
      return reduce_loop<Format, Sum, 3>(task, Keep{});
    case 4:
      return reduce_loop<Format, Sum, 4>(task, Keep{});
    default:
      return reduce_loop<Format, Sum>(task, Keep{});
  }
}

}  // namespace
}  // namespace pycomm
