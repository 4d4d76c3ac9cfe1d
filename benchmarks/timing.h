// SPDX-License-Identifier: MIT
// What benchmarks of one thread take time with: a call repeated, and the middle of many samples.
#pragma once

#include <algorithm>
#include <chrono>
#include <functional>
#include <vector>

// Seconds for one of `calls`.
inline double once(const std::function<void()>& run, int calls) {
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < calls; ++i) run();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / calls;
}

inline double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}
