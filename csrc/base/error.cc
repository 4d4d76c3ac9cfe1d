// SPDX-License-Identifier: MIT
#include "base/error.h"

#include <cerrno>
#include <cstring>

namespace pycomm {

const char* name_of(FailureKind kind) {
  switch (kind) {
    case FailureKind::none:
      return "none";
    case FailureKind::peer_failure:
      return "peer_failure";
    case FailureKind::mismatch:
      return "mismatch";
    case FailureKind::timeout:
      return "timeout";
    case FailureKind::aborted:
      return "aborted";
    case FailureKind::system:
      return "system";
  }
  return "unknown";
}

void throw_system(const std::string& what) {
  const int saved = errno;
  throw CommError(Failure{FailureKind::system, what + ": " + std::strerror(saved), {}});
}

}  // namespace pycomm
