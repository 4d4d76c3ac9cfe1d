// SPDX-License-Identifier: MIT
// The handle of an asynchronous call of the array face. See communicator.h.
#include <pybind11/pybind11.h>

#include <cmath>

#include "torch/call_arguments.h"
#include "torch/communicator.h"
#include "torch/errors.h"

namespace pycomm {
namespace {

struct WorkObject {
  PyObject_HEAD PyObject* communicator;
  ArrayCall* call;
};

WorkObject* cast(PyObject* self) { return reinterpret_cast<WorkObject*>(self); }

std::chrono::nanoseconds patience_of(PyObject* timeout_s) {
  if (!timeout_s) return {};
  const double seconds = PyFloat_AsDouble(timeout_s);
  if (seconds == -1 && PyErr_Occurred()) throw pybind11::error_already_set();
  PYCOMM_USAGE(seconds > 0 && seconds < 1e9, "wait: got a timeout of ", seconds,
               " s, expected a positive number of seconds");
  return std::chrono::nanoseconds(std::llround(std::ceil(seconds * 1e9)));
}

PyObject* wait(PyObject* self, PyObject* const* arguments, Py_ssize_t given, PyObject* keywords) {
  try {
    static Parameters<1> parameters("wait", 0, {"timeout_s"});
    const auto values = parameters.bind(arguments, given, keywords);
    const auto patience = patience_of(unless_none(values[0]));
    ArrayCall& call = *cast(self)->call;
    {
      const WithoutGil released;
      communicator_of(cast(self)->communicator).engine().wait(*call.operation, patience);
    }
    call.release();
    return take_result(call);
  } catch (...) {
    set_python_error();
    return nullptr;
  }
}

PyObject* is_completed(PyObject* self, PyObject*) {
  return PyBool_FromLong(cast(self)->call->operation->finished());
}

void destroy(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  auto* work = cast(self);
  std::unique_ptr<ArrayCall> call(work->call);
  if (call && !call->operation->finished()) {
    communicator_of(work->communicator).adopt(std::move(call));
  }
  call.reset();
  Py_XDECREF(work->communicator);
  type->tp_free(self);
  Py_DECREF(type);
}

constexpr const char* kWaitDoc = R"(wait($self, /, timeout_s=None)
--

Waits for the operation; local, blocking.

Args:
    timeout_s: Seconds to wait at most; None: as long as the operation itself may take.

Returns:
    What the call would have returned without async_op.

Raises:
    Timeout: it has not finished within timeout_s. It goes on, and may be waited for again.
    CommError: the operation, and with it the group, has failed.
)";
constexpr const char* kIsCompletedDoc = R"(is_completed($self, /)
--

Whether the operation has ended, also with an error; local, never blocks.
)";

PyMethodDef methods[] = {
    {"wait", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(wait)),
     METH_FASTCALL | METH_KEYWORDS, kWaitDoc},
    {"is_completed", is_completed, METH_NOARGS, kIsCompletedDoc},
    {nullptr, nullptr, 0, nullptr},
};

PyType_Slot slots[] = {
    {Py_tp_dealloc, reinterpret_cast<void*>(destroy)},
    {Py_tp_methods, methods},
    {Py_tp_doc, const_cast<char*>("The handle of an asynchronous call of a Communicator.")},
    {0, nullptr},
};
PyType_Spec spec = {"pycomm._C.ArrayWork", sizeof(WorkObject), 0,
                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};

PyTypeObject* type = nullptr;

}  // namespace

PyObject* make_array_work_type(PyObject*) {
  PyObject* made = PyType_FromSpec(&spec);
  type = reinterpret_cast<PyTypeObject*>(made);
  return made;
}

PyObject* make_array_work(PyObject* communicator, std::unique_ptr<ArrayCall> call) {
  PyObject* self = type->tp_alloc(type, 0);
  if (!self) throw std::bad_alloc();
  cast(self)->communicator = Py_NewRef(communicator);
  cast(self)->call = call.release();
  return self;
}

}  // namespace pycomm
