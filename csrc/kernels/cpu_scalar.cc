// SPDX-License-Identifier: MIT
// The reference: one element at a time, no SIMD instruction chosen by us or by the compiler.
// Flags (CMakeFlags.cmake): -O2 -fno-tree-vectorize -ffp-contract=off
// Nothing here may have external linkage but the one function below, see small_floats.h.
#define PYCOMM_VECTOR_BYTES 0
#include "kernels/codec_loops.h"
#include "kernels/cpu_kernels.h"
#include "kernels/cpu_table.h"

namespace pycomm {

const CpuKernels* scalar_kernels() {
  static constexpr CpuKernels kernels{reduce_any, scale_any, kCodecs};
  return &kernels;
}

}  // namespace pycomm
