// SPDX-License-Identifier: MIT
// UsageError and CommError as the Python classes of pycomm/errors.py, wherever they leave C++: also
// through torch's own bindings, whose translators are shared by all modules of a process.
#pragma once

namespace pycomm {

// Once, from the module's initialisation, with the GIL.
void register_errors();

}  // namespace pycomm
