// SPDX-License-Identifier: MIT
#include "torch/communicator.h"

#include <torch/csrc/utils/pybind.h>

#include "torch/call_arguments.h"
#include "torch/communicator_docs.h"
#include "torch/errors.h"

namespace py = pybind11;

namespace pycomm {
namespace {

struct CommunicatorObject {
  PyObject_HEAD Communicator* group;
};

CommunicatorObject* cast(PyObject* self) { return reinterpret_cast<CommunicatorObject*>(self); }

}  // namespace

Communicator& communicator_of(PyObject* object) {
  auto* group = cast(object)->group;
  PYCOMM_USAGE(group, "this Communicator was never connected; its __init__ did not run to its end");
  return *group;
}

Communicator::~Communicator() {
  close("its Communicator was dropped", false);
  adopted_.clear();
}

void Communicator::close(const std::string& reason, bool drain) {
  const WithoutGil released;
  backend_->close(reason, drain);
}

void Communicator::adopt(std::unique_ptr<ArrayCall> call) {
  std::erase_if(adopted_, [](const auto& one) { return one->operation->finished(); });
  adopted_.push_back(std::move(call));
}

PyObject* take_result(ArrayCall& call) {
  if (call.operation->collective == Collective::recv) {
    return PyLong_FromLong(call.operation->source);
  }
  return Py_NewRef(call.result ? call.result : Py_None);
}

namespace {

// What every method does around what is its own: `fill` makes the operation of the arguments. A
// collective that is refused takes its number all the same, see Engine::skip().
template <size_t kCount, class Fill>
PyObject* call(PyObject* self, Collective collective, Parameters<kCount>& parameters,
               PyObject* const* arguments, Py_ssize_t given, PyObject* keywords, Fill fill) {
  bool ours = false;
  try {
    Communicator& group = communicator_of(self);
    ours = true;
    const auto values = parameters.bind(arguments, given, keywords);
    if (flag_of(values[kCount - 1])) {
      auto one = std::make_unique<ArrayCall>(collective);
      fill(group, *one, values);
      one->finish(group.rank());
      ours = false;
      {
        const WithoutGil released;
        group.engine().submit(one->operation);
      }
      return make_array_work(self, std::move(one));
    }
    ArrayCall one(collective);
    fill(group, one, values);
    one.finish(group.rank());
    ours = false;
    {
      const WithoutGil released;
      group.engine().run(one.operation);
    }
    return take_result(one);
  } catch (...) {
    set_python_error();
    const bool message = collective == Collective::send || collective == Collective::recv;
    if (ours && !message) cast(self)->group->engine().skip();
    return nullptr;
  }
}

void set_root(ArrayCall& one, const Communicator& group, PyObject* root) {
  one.operation->root = integer_of(root, 0);
  check_root(one.operation->collective, one.operation->root, group.world_size());
}

void set_op(ArrayCall& one, PyObject* op) {
  one.operation->op = op_named(one.operation->collective, op);
  check_op(one.operation->collective, one.operation->op, one.operation->dtype);
}

// The side of a rooted collective that the root alone gives.
void check_given_by_root(const ArrayCall& one, bool root, PyObject* array, const char* what) {
  PYCOMM_USAGE(root == (array != nullptr), name_of(one.operation->collective), ": the ", what,
               " is ", array ? "an array" : "None", ", expected ", root ? "an array" : "None",
               " on this rank; only the root, rank ", one.operation->root, ", gives it");
}

#define PYCOMM_METHOD(name) \
  PyObject* name(PyObject* self, PyObject* const* arguments, Py_ssize_t given, PyObject* keywords)

PYCOMM_METHOD(all_reduce) {
  static Parameters<4> parameters("all_reduce", 1, {"array", "out", "op", "async_op"});
  return call(self, Collective::all_reduce, parameters, arguments, given, keywords,
              [](Communicator&, ArrayCall& one, const auto& values) {
                one.open_input(values[0]);
                if (auto* out = unless_none(values[1])) one.open_output(out);
                set_op(one, values[2]);
                one.add_whole(true, true);
                one.set_result(one.output.given() ? one.output.object : one.input.object);
              });
}

PYCOMM_METHOD(broadcast) {
  static Parameters<3> parameters("broadcast", 1, {"array", "root", "async_op"});
  return call(self, Collective::broadcast, parameters, arguments, given, keywords,
              [](Communicator& group, ArrayCall& one, const auto& values) {
                set_root(one, group, values[1]);
                const bool root = group.rank() == one.operation->root;
                one.open_input(values[0]);
                one.add_whole(root, !root);
                one.set_result(one.input.object);
              });
}

PYCOMM_METHOD(reduce) {
  static Parameters<5> parameters("reduce", 1, {"array", "out", "op", "root", "async_op"});
  return call(self, Collective::reduce, parameters, arguments, given, keywords,
              [](Communicator& group, ArrayCall& one, const auto& values) {
                set_root(one, group, values[3]);
                const bool root = group.rank() == one.operation->root;
                auto* out = unless_none(values[1]);
                if (out) check_given_by_root(one, root, out, "result's array");
                one.open_input(values[0]);
                if (out) one.open_output(out);
                set_op(one, values[2]);
                one.add_whole(true, root);
                if (root) one.set_result(out ? one.output.object : one.input.object);
              });
}

PYCOMM_METHOD(all_gather) {
  static Parameters<3> parameters("all_gather", 2, {"array", "out", "async_op"});
  return call(self, Collective::all_gather, parameters, arguments, given, keywords,
              [](Communicator& group, ArrayCall& one, const auto& values) {
                one.open_input(values[0]);
                one.open_output(values[1]);
                one.check_sizes(group.world_size(), 1);
                one.add_split(one.output, group.world_size(), false, true);
                one.add(one.input, true, false);
                one.set_result(one.output.object);
              });
}

PYCOMM_METHOD(gather) {
  static Parameters<4> parameters("gather", 1, {"array", "out", "root", "async_op"});
  return call(self, Collective::gather, parameters, arguments, given, keywords,
              [](Communicator& group, ArrayCall& one, const auto& values) {
                set_root(one, group, values[2]);
                const bool root = group.rank() == one.operation->root;
                auto* out = unless_none(values[1]);
                check_given_by_root(one, root, out, "result's array");
                one.open_input(values[0]);
                if (root) {
                  one.open_output(out);
                  one.check_sizes(group.world_size(), 1);
                  one.add_split(one.output, group.world_size(), false, true);
                  one.set_result(one.output.object);
                } else {
                  one.add_empty(group.world_size());
                }
                one.add(one.input, true, false);
              });
}

PYCOMM_METHOD(scatter) {
  static Parameters<4> parameters("scatter", 2, {"array", "out", "root", "async_op"});
  return call(self, Collective::scatter, parameters, arguments, given, keywords,
              [](Communicator& group, ArrayCall& one, const auto& values) {
                set_root(one, group, values[2]);
                const bool root = group.rank() == one.operation->root;
                auto* array = unless_none(values[0]);
                check_given_by_root(one, root, array, "array to scatter");
                if (root) one.open_input(array);
                one.open_output(values[1]);
                if (root) {
                  one.check_sizes(1, group.world_size());
                  one.add_split(one.input, group.world_size(), true, false);
                } else {
                  one.add_empty(group.world_size());
                }
                one.add(one.output, false, true);
                one.set_result(one.output.object);
              });
}

PYCOMM_METHOD(reduce_scatter) {
  static Parameters<4> parameters("reduce_scatter", 2, {"array", "out", "op", "async_op"});
  return call(self, Collective::reduce_scatter, parameters, arguments, given, keywords,
              [](Communicator& group, ArrayCall& one, const auto& values) {
                one.open_input(values[0]);
                one.open_output(values[1]);
                one.check_sizes(1, group.world_size());
                set_op(one, values[2]);
                one.add_split(one.input, group.world_size(), true, false);
                one.add(one.output, false, true);
                one.set_result(one.output.object);
              });
}

PYCOMM_METHOD(all_to_all) {
  static Parameters<3> parameters("all_to_all", 2, {"array", "out", "async_op"});
  return call(self, Collective::all_to_all, parameters, arguments, given, keywords,
              [](Communicator& group, ArrayCall& one, const auto& values) {
                one.open_input(values[0]);
                one.open_output(values[1]);
                one.check_sizes(1, 1);
                const auto world = static_cast<size_t>(group.world_size());
                PYCOMM_USAGE(one.input.count % world == 0, "all_to_all: got ", one.input.describe(),
                             ", expected a multiple of the world size ", world,
                             " elements; pad it");
                one.add_split(one.input, group.world_size(), true, false);
                one.add_split(one.output, group.world_size(), false, true);
                one.set_result(one.output.object);
              });
}

PYCOMM_METHOD(barrier) {
  static Parameters<1> parameters("barrier", 0, {"async_op"});
  return call(self, Collective::barrier, parameters, arguments, given, keywords,
              [](Communicator&, ArrayCall&, const auto&) {});
}

void fill_message(Communicator& group, ArrayCall& one, PyObject* array, PyObject* peer,
                  PyObject* tag) {
  const auto collective = one.operation->collective;
  const bool sends = collective == Collective::send;
  one.operation->peer = integer_of(peer, kAnySource);
  one.operation->root = integer_of(tag, 0);
  PYCOMM_USAGE(one.operation->root >= 0, name_of(collective), ": got tag ", one.operation->root,
               ", expected 0 or more; choose another tag");
  if (peer) {
    check_peer(collective, one.operation->peer, group.rank(), group.world_size());
  } else {
    PYCOMM_USAGE(group.world_size() > 1, "recv: this group has one rank, so nobody can send to it");
  }
  one.open_input(array);
  one.add_whole(sends, !sends);
}

PYCOMM_METHOD(send) {
  static Parameters<4> parameters("send", 2, {"array", "peer", "tag", "async_op"});
  return call(self, Collective::send, parameters, arguments, given, keywords,
              [](Communicator& group, ArrayCall& one, const auto& values) {
                fill_message(group, one, values[0], values[1], values[2]);
              });
}

PYCOMM_METHOD(recv) {
  static Parameters<4> parameters("recv", 1, {"array", "peer", "tag", "async_op"});
  return call(self, Collective::recv, parameters, arguments, given, keywords,
              [](Communicator& group, ArrayCall& one, const auto& values) {
                fill_message(group, one, values[0], unless_none(values[1]), values[2]);
              });
}

PYCOMM_METHOD(close) {
  try {
    static Parameters<2> parameters("close", 0, {"reason", "drain"});
    const auto values = parameters.bind(arguments, given, keywords);
    std::string reason = "close() was called";
    if (values[0]) reason = py::cast<std::string>(py::handle(values[0]));
    if (cast(self)->group) cast(self)->group->close(reason, !values[1] || flag_of(values[1]));
    Py_RETURN_NONE;
  } catch (...) {
    set_python_error();
    return nullptr;
  }
}

#undef PYCOMM_METHOD

int initialise(PyObject* self, PyObject* arguments, PyObject* keywords) {
  try {
    PyObject* backend = nullptr;
    static const char* names[] = {"backend", nullptr};
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O:Communicator",
                                     const_cast<char**>(names), &backend)) {
      return -1;
    }
    PYCOMM_USAGE(!cast(self)->group, "this Communicator is connected already; make another");
    cast(self)->group =
        new Communicator(py::cast<c10::intrusive_ptr<Backend>>(py::handle(backend)));
    return 0;
  } catch (...) {
    set_python_error();
    return -1;
  }
}

void destroy(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  delete std::exchange(cast(self)->group, nullptr);
  type->tp_free(self);
  Py_DECREF(type);
}

template <int (Communicator::*kGet)() const>
PyObject* get(PyObject* self, void*) {
  try {
    return PyLong_FromLong((communicator_of(self).*kGet)());
  } catch (...) {
    set_python_error();
    return nullptr;
  }
}

using Method = PyObject* (*)(PyObject*, PyObject* const*, Py_ssize_t, PyObject*);
PyMethodDef method(const char* name, Method function, const char* doc) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(function)),
          METH_FASTCALL | METH_KEYWORDS, doc};
}

PyMethodDef methods[] = {
    method("all_reduce", all_reduce, kAllReduceDoc),
    method("broadcast", broadcast, kBroadcastDoc),
    method("reduce", reduce, kReduceDoc),
    method("all_gather", all_gather, kAllGatherDoc),
    method("gather", gather, kGatherDoc),
    method("scatter", scatter, kScatterDoc),
    method("reduce_scatter", reduce_scatter, kReduceScatterDoc),
    method("all_to_all", all_to_all, kAllToAllDoc),
    method("barrier", barrier, kBarrierDoc),
    method("send", send, kSendDoc),
    method("recv", recv, kRecvDoc),
    method("close", close, kCloseDoc),
    {nullptr, nullptr, 0, nullptr},
};
PyGetSetDef properties[] = {
    {"rank", get<&Communicator::rank>, nullptr, "This rank, counted within the group.", nullptr},
    {"world_size", get<&Communicator::world_size>, nullptr, "How many ranks the group has.",
     nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};
PyType_Slot slots[] = {
    {Py_tp_new, reinterpret_cast<void*>(PyType_GenericNew)},
    {Py_tp_init, reinterpret_cast<void*>(initialise)},
    {Py_tp_dealloc, reinterpret_cast<void*>(destroy)},
    {Py_tp_methods, methods},
    {Py_tp_getset, properties},
    {Py_tp_doc, const_cast<char*>("The collectives of pycomm.Communicator.")},
    {0, nullptr},
};
PyType_Spec spec = {"pycomm._C.Communicator", sizeof(CommunicatorObject), 0,
                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, slots};

}  // namespace

void bind_communicator(PyObject* module) {
  for (auto* made : {PyType_FromSpec(&spec), make_array_work_type(module)}) {
    if (!made || PyModule_AddType(module, reinterpret_cast<PyTypeObject*>(made)) < 0) {
      throw py::error_already_set();
    }
  }
}

}  // namespace pycomm
