// SPDX-License-Identifier: MIT
// Unix sockets at abstract addresses: no file is left anywhere, and descriptors can travel on them.
// Both ends must be in one network namespace. Set-up thread only; the caller owns what is returned.
#pragma once

#include <string>

#include "base/fd.h"

namespace pycomm {

// "pycomm-" and 32 random hex digits.
std::string random_unix_name();
// Listens without blocking. Throws CommError(system).
Fd listen_unix(const std::string& name);
// Throws CommError(system) when there is no socket to be had; empty, with errno set, when nobody
// listens.
Fd connect_unix(const std::string& name);

}  // namespace pycomm
