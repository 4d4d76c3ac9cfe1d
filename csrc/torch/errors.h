// SPDX-License-Identifier: MIT
// UsageError and CommError as the Python classes of pycomm/errors.py, wherever they leave C++: also
// through torch's own bindings, whose translators are shared by all modules of a process.
#pragma once

namespace pycomm {

// Once, from the module's initialisation, with the GIL.
void register_errors();

// For functions bound without pybind11: makes the exception that is being handled the Python error.
// With the GIL, inside a catch block.
void set_python_error() noexcept;

}  // namespace pycomm
