// SPDX-License-Identifier: MIT
#include "torch/errors.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/Exceptions.h>

#include "base/error.h"

namespace py = pybind11;

namespace pycomm {
namespace {

const char* class_of(FailureKind kind) {
  switch (kind) {
    case FailureKind::peer_failure:
      return "PeerFailure";
    case FailureKind::mismatch:
      return "Mismatch";
    case FailureKind::timeout:
      return "Timeout";
    case FailureKind::aborted:
      return "Aborted";
    default:
      return "CommError";
  }
}

void set_error(const char* name, const std::string& text, const std::vector<int>& ranks) {
  // Modules go before the last threads do.
  if (!Py_IsInitialized()) return;
  const auto type = py::module_::import("pycomm.errors").attr(name);
  auto error = type(text);
  if (!ranks.empty()) error.attr("ranks") = py::tuple(py::cast(ranks));
  PyErr_SetObject(type.ptr(), error.ptr());
}

}  // namespace

void register_errors() {
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const UsageError& error) {
      set_error("UsageError", error.what(), {});
    } catch (const CommError& error) {
      set_error(class_of(error.failure().kind), error.what(), error.failure().ranks);
    }
  });
}

void set_python_error() noexcept {
  try {
    throw;
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const UsageError& error) {
    set_error("UsageError", error.what(), {});
  } catch (const CommError& error) {
    set_error(class_of(error.failure().kind), error.what(), error.failure().ranks);
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  } catch (...) {
    PyErr_SetString(PyExc_RuntimeError, "an unknown C++ exception");
  }
}

void throw_python_error() {
  const py::gil_scoped_acquire gil;
  set_python_error();
  python_error error;
  error.persist();
  throw error;
}

}  // namespace pycomm
