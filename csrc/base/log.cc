// SPDX-License-Identifier: MIT
#include "base/log.h"

#include <unistd.h>

#include <cstdlib>
#include <cstring>

namespace pycomm {
namespace {

constexpr const char* kNames[] = {"error", "warning", "info", "debug"};

int threshold() {
  static const int level = [] {
    const char* wanted = std::getenv("PYCOMM_LOG");
    for (int i = 0; wanted && i < 4; ++i) {
      if (std::strcmp(wanted, kNames[i]) == 0) return i;
    }
    return static_cast<int>(LogLevel::warning);
  }();
  return level;
}

}  // namespace

bool log_enabled(LogLevel level) { return static_cast<int>(level) <= threshold(); }

void log(LogLevel level, int rank, const std::string& text) {
  if (!log_enabled(level)) return;
  const std::string line = "[pycomm rank " + std::to_string(rank) + "] " +
                           kNames[static_cast<int>(level)] + ": " + text + "\n";
  [[maybe_unused]] const auto written = ::write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace pycomm
