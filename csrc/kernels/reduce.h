// SPDX-License-Identifier: MIT
// k-way reduction on the CPU: target = sources[0] op sources[1] op ... in that order, one pass,
// into one target or several.
//
// 8- and 16-bit floats accumulate in float32 and are rounded once, to nearest even, as PyTorch 2.13
// converts them. Integers wrap. min and max propagate NaN and order -0 before +0; every NaN result
// is the dtype's one canonical quiet NaN, also with a single source. Booleans are logical, any
// non-zero byte is true. The same loops are compiled for a scalar reference, AVX2 and AVX-512 and
// chosen once at run time (PYCOMM_CPU=scalar|avx2|avx512 overrides). All variants give the same
// bits for the same input. Callable from any thread; no memory is kept. `target` may be one of the
// sources, otherwise the ranges must not overlap. No alignment is required.
#pragma once

#include <cstddef>
#include <string_view>

#include "base/dtype.h"

namespace pycomm {

enum class CpuLevel : uint8_t { scalar, avx2, avx512 };
std::string_view name_of(CpuLevel level);

// What this machine (and PYCOMM_CPU) allows. Throws UsageError when PYCOMM_CPU holds an unknown
// value or asks for more than the machine has.
CpuLevel best_cpu_level();

struct ReduceTask {
  ReduceOp op = ReduceOp::sum;  // never premul_sum; avg is a sum whose divisor is the world size
  DType dtype = DType::float32;
  void* target = nullptr;
  const void* const* sources = nullptr;
  int source_count = 0;  // >= 1
  size_t count = 0;      // elements
  int divisor = 1;       // applied after the sum and before the one rounding; 1 = none
  // More memories that get the result in the same pass; each may be one of the sources.
  void* const* copies = nullptr;
  int copy_count = 0;
};

void reduce(const ReduceTask& task);                     // at best_cpu_level()
void reduce_at(CpuLevel level, const ReduceTask& task);  // for tests and benchmarks

// out[i] = in[i] * factor over floating and complex dtypes, computed in float32 (16-bit and
// smaller), else in the dtype itself. `out` may be `in`, otherwise the ranges must not overlap.
void scale(DType dtype, const void* in, void* out, size_t count, double factor);

}  // namespace pycomm
