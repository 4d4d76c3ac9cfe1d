// SPDX-License-Identifier: MIT
// What one CPU level offers to the dispatcher, and the dispatcher's two decisions, apart for tests.
//
// Each level is a file compiled with its own flags (CMakeFlags.cmake); a file built without them,
// or for another processor family, offers nullptr and the level does not exist. Constants and pure
// functions: any thread.
#pragma once

#include "kernels/codec_kernels.h"
#include "kernels/reduce.h"

namespace pycomm {

struct CpuKernels {
  void (*reduce)(const ReduceTask& task);
  void (*scale)(DType dtype, const void* in, void* out, size_t count, double factor);
  const CodecKernels* codecs;  // by Wire
};

const CpuKernels* scalar_kernels();
const CpuKernels* avx2_kernels();
const CpuKernels* avx512_kernels();

// What both the processor and this build have.
CpuLevel hardware_cpu_level();

// `wanted` is the text of PYCOMM_CPU, empty for none. Throws UsageError.
CpuLevel chosen_cpu_level(std::string_view wanted, CpuLevel hardware);

// Throws UsageError when the machine lacks the level.
const CpuKernels& cpu_kernels_at(CpuLevel level);

}  // namespace pycomm
