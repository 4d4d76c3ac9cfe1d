// SPDX-License-Identifier: MIT
// UsageError and CommError as the Python classes of pycomm/errors.py, wherever they leave C++: also
// through torch's own bindings, whose translators are shared by all modules of a process.
#pragma once

#include "base/error.h"

namespace pycomm {

// Once, from the module's initialisation, with the GIL.
void register_errors();

// For functions bound without pybind11: makes the exception that is being handled the Python error.
// With the GIL, inside a catch block.
void set_python_error() noexcept;

// For code that torch calls and whose exceptions torch would turn into RuntimeErrors, such as hooks
// of autograd. Throws torch's python_error for the exception that is being handled. Without the
// GIL, inside a catch block.
[[noreturn]] void throw_python_error();

template <class Function>
void raising_in_python(Function&& function) {
  try {
    function();
  } catch (const UsageError&) {
    throw_python_error();
  } catch (const CommError&) {
    throw_python_error();
  }
}

}  // namespace pycomm
