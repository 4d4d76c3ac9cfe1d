// SPDX-License-Identifier: MIT
// One line to stderr with the rank in front. The first place that decides an error logs it, and
// nobody after it. PYCOMM_LOG=error|warning|info|debug, default warning. Thread-safe: one write(2)
// a line.
#pragma once

#include <string>

namespace pycomm {

enum class LogLevel : int { error, warning, info, debug };

bool log_enabled(LogLevel level);
void log(LogLevel level, int rank, const std::string& text);

}  // namespace pycomm
