#!/usr/bin/env bash
# Builds, checks and times everything CUDA on the machine it runs on. Needs nvcc, cmake, ninja (or make)
# and a GPU; takes a few minutes. Writes gpu_kernels.json into OUT (default: build/gpu).
set -euo pipefail
cd "$(dirname "$0")/../.."
OUT=${OUT:-build/gpu}
mkdir -p "$OUT" build/gpu
cmake -S . -B build/gpu -DPYCOMM_TESTS=ON -DPYCOMM_CUDA=ON > "$OUT/configure.log"
cmake --build build/gpu -j "$(nproc)" --target gpu_kernels > "$OUT/build.log"
build/gpu/gpu_kernels check
build/gpu/gpu_kernels measure "$(git rev-parse --short HEAD 2>/dev/null || echo unknown)" |
  tee "$OUT/gpu_kernels.json"
if command -v compute-sanitizer > /dev/null; then
  compute-sanitizer --error-exitcode 1 build/gpu/gpu_kernels check > "$OUT/sanitizer.txt" 2>&1 &&
    tail -1 "$OUT/sanitizer.txt"
fi
