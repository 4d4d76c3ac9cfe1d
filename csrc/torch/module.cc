// SPDX-License-Identifier: MIT
// The extension module pycomm._C: the backend and its options for pycomm/backend.py, plans and
// kernels for inspection. Registration is all that happens here.
#include <torch/csrc/utils/pybind.h>
#include <torch/version.h>

#include "kernels/reduce.h"
#include "torch/arena_allocator.h"
#include "torch/backend.h"
#include "torch/bucket_bindings.h"
#include "torch/codecs.h"
#include "torch/communicator.h"
#include "torch/device_registry.h"
#include "torch/doctor.h"
#include "torch/errors.h"
#include "torch/kernels.h"
#include "torch/plans.h"
#include "transport/faulty.h"

#ifdef PYCOMM_WITH_CUDA
#include "kernels/device_kernels.h"
#endif

namespace py = pybind11;

namespace pycomm {
namespace {

using Milliseconds = std::chrono::milliseconds;

void bind_options(py::module_& m) {
  py::class_<BackendOptions, c10d::Backend::Options, c10::intrusive_ptr<BackendOptions>>(
      m, "BackendOptions")
      .def(py::init<>())
      .def_property(
          "transports", [](const BackendOptions& o) { return o.mesh.transports; },
          [](BackendOptions& o, std::string v) { o.mesh.transports = std::move(v); })
      .def_property(
          "socket_interface", [](const BackendOptions& o) { return o.mesh.socket_interface; },
          [](BackendOptions& o, std::string v) { o.mesh.socket_interface = std::move(v); })
      .def_property(
          "port_range",
          [](const BackendOptions& o) { return std::pair(o.mesh.ports.low, o.mesh.ports.high); },
          [](BackendOptions& o, std::pair<int, int> v) { o.mesh.ports = {v.first, v.second}; })
      .def_property(
          "host_id", [](const BackendOptions& o) { return o.mesh.host_id; },
          [](BackendOptions& o, std::string v) { o.mesh.host_id = std::move(v); })
      .def_property(
          "store_host", [](const BackendOptions& o) { return o.mesh.store_host; },
          [](BackendOptions& o, std::string v) { o.mesh.store_host = std::move(v); })
      .def_property(
          "tcp_connections", [](const BackendOptions& o) { return o.mesh.tcp_connections; },
          [](BackendOptions& o, int v) { o.mesh.tcp_connections = v; })
      .def_property(
          "segment_bytes", [](const BackendOptions& o) { return o.mesh.segment_bytes; },
          [](BackendOptions& o, size_t v) { o.mesh.segment_bytes = v; })
      .def_property(
          "connect_timeout_ms",
          [](const BackendOptions& o) {
            return std::chrono::duration_cast<Milliseconds>(o.mesh.connect_timeout).count();
          },
          [](BackendOptions& o, int64_t v) { o.mesh.connect_timeout = Milliseconds(v); })
      .def_property(
          "detect_timeout_ms",
          [](const BackendOptions& o) {
            return std::chrono::duration_cast<Milliseconds>(o.engine.detect_timeout).count();
          },
          [](BackendOptions& o, int64_t v) { o.engine.detect_timeout = Milliseconds(v); })
      .def_property(
          "timeout_ms", [](const BackendOptions& o) { return o.timeout.count(); },
          [](BackendOptions& o, int64_t v) { o.timeout = Milliseconds(v); })
      .def("set_algorithms",
           [](BackendOptions& o, const std::string& v) {
             o.engine.algorithms = parse_algorithms(v);
           })
      .def("set_wire",
           [](BackendOptions& o, const std::string& v) { o.engine.wire = parse_wire(v); })
      .def_property_readonly("wire",
                             [](const BackendOptions& o) {
                               const WireChoice& chosen = o.engine.wire;
                               return std::string(chosen.automatic ? "auto" : name_of(chosen.wire));
                             })
      .def_property(
          "check_plans", [](const BackendOptions& o) { return o.engine.check_plans; },
          [](BackendOptions& o, bool v) { o.engine.check_plans = v; })
      .def_property(
          "blocking_wait", [](const BackendOptions& o) { return o.blocking_wait; },
          [](BackendOptions& o, bool v) { o.blocking_wait = v; })
      .def_property(
          "device_mode",
          [](const BackendOptions& o) {
            return o.device_mode ? std::string(1, o.device_mode) : std::string("auto");
          },
          [](BackendOptions& o, const std::string& v) {
            PYCOMM_USAGE(v == "auto" || v == "H" || v == "S" || v == "K", "device_mode: got \"", v,
                         "\", expected auto, H, S or K");
            o.device_mode = v == "auto" ? 0 : v[0];
          })
      .def_property(
          "inter", [](const BackendOptions& o) { return o.inter; },
          [](BackendOptions& o, std::string v) { o.inter = std::move(v); })
      .def_property(
          "flight_dir", [](const BackendOptions& o) { return o.engine.flight_dir; },
          [](BackendOptions& o, std::string v) { o.engine.flight_dir = std::move(v); })
      .def_property(
          "group_name", [](const BackendOptions& o) { return o.group_name; },
          [](BackendOptions& o, std::string v) { o.group_name = std::move(v); })
      // split_group copies the options deeply.
      .def("__copy__",
           [](const BackendOptions& o) { return c10::make_intrusive<BackendOptions>(o); })
      .def("__deepcopy__", [](const BackendOptions& o, const py::dict&) {
        return c10::make_intrusive<BackendOptions>(o);
      });
}

void bind_backend(py::module_& m) {
  const auto release = py::call_guard<py::gil_scoped_release>();
  py::class_<Backend, c10d::Backend, c10::intrusive_ptr<Backend>>(m, "Backend")
      .def(py::init([](const c10::intrusive_ptr<c10d::Store>& store, int rank, int world_size,
                       const c10::intrusive_ptr<BackendOptions>& options) {
             // Only connecting waits; pybind11's own bookkeeping afterwards needs the GIL.
             const py::gil_scoped_release connecting;
             return c10::make_intrusive<Backend>(store, rank, world_size, options);
           }),
           py::arg("store"), py::arg("rank"), py::arg("world_size"), py::arg("options"))
      .def("close", &Backend::close, py::arg("reason"), py::arg("drain"), release)
      .def_property_readonly("options", &Backend::options)
      .def("device_mode", &Backend::device_mode, release)
      .def("perform_nocolor_split", [](Backend&, const py::object&) {})
      .def("comm_split_count", &Backend::split_count)
      .def(
          "flight_json", [](Backend& b) { return b.engine().flight_json(); }, release)
      .def(
          "algorithm_for",
          [](Backend& b, const std::string& collective, size_t bytes) {
            return b.engine().algorithm_for(collective_of(collective), bytes);
          },
          py::arg("collective"), py::arg("bytes"))
      .def("wire", [](Backend& b) { return std::string(name_of(b.engine().programs().wire())); })
      .def(
          "predicted_us",
          [](Backend& b, const std::string& collective, size_t bytes) {
            return 1e6 * b.engine().programs().predicted_s(collective_of(collective), bytes);
          },
          py::arg("collective"), py::arg("bytes"))
      .def("figures",
           [](Backend& b) {
             const auto& found = b.engine().programs().figures();
             py::dict told;
             told["measured"] = found.measured;
             told["alpha_us"] = 1e6 * found.link.alpha_s;
             told["beta_ns_per_kib"] = 1e9 * 1024 * found.link.beta_s_per_byte;
             told["gamma_ns_per_kib"] = 1e9 * 1024 * found.link.gamma_s_per_byte;
             told["size_factor"] = size_factor(found);
             return told;
           })
      .def(
          "transport_to",
          [](Backend& b, int peer) { return std::string(b.engine().mesh().link(peer).transport); },
          py::arg("peer"))
      .def(
          "_inject_fault",
          [](Backend& b, int peer, const std::string& kind, uint64_t frame, int signal) {
            FaultPlan faults;
            if (kind == "drop")
              faults.drop_frame = frame;
            else if (kind == "corrupt")
              faults.corrupt_frame = frame;
            else if (kind == "cut")
              faults.cut_before_frame = frame;
            else if (kind == "signal") {
              faults.signal_before_frame = frame;
              faults.signal = signal;
            } else
              throw UsageError("unknown fault '" + kind + "'; choose drop, corrupt, cut, signal");
            auto& lane = b.engine().mesh().link(peer).lanes[0];
            lane = make_faulty(std::move(lane), faults, peer);
          },
          py::arg("peer"), py::arg("kind"), py::arg("frame"), py::arg("signal") = 0);
}

py::dict build_info() {
  py::dict info;
  info["torch_version"] = PYCOMM_TORCH_VERSION;
#ifdef PYCOMM_WITH_CUDA
  info["cuda"] = true;
  int error = 0;
  info["cuda_devices"] = cuda_device_count(&error);
  info["cuda_error"] = error ? std::string(cuda_error_text(error)) : std::string();
#else
  info["cuda"] = false;
#endif
  info["cpu_level"] = std::string(name_of(best_cpu_level()));
  return info;
}

}  // namespace
}  // namespace pycomm

PYBIND11_MODULE(_C, m) {
  py::module_::import("torch.distributed");  // registers the base classes
  pycomm::register_errors();
  pycomm::bind_options(m);
  pycomm::bind_backend(m);
  pycomm::bind_plans(m);
  pycomm::bind_doctor(m);
  pycomm::bind_kernels(m);
  pycomm::bind_codecs(m);
  pycomm::bind_communicator(m.ptr());
  pycomm::bind_arena(m);
  pycomm::bind_devices(m);
  pycomm::bind_buckets(m);
  m.def("build_info", &pycomm::build_info);
  m.def("close_all", &pycomm::Backend::close_all, py::arg("reason"),
        py::call_guard<py::gil_scoped_release>());
}
