// SPDX-License-Identifier: MIT
// What messages and bytes cost: measured, told to others, and bounded in what it may decide.
#include <chrono>
#include <limits>
#include <string>
#include <vector>

#include "check.h"
#include "engine/select.h"
#include "engine/tuner.h"

using namespace pycomm;

namespace {

Figures with(double alpha, double beta, double gamma) { return {{alpha, beta, gamma}, true}; }

}  // namespace

TEST("measuring ends soon, gives credible figures, and is done once") {
  const auto begun = std::chrono::steady_clock::now();
  const Figures& first = figures_of_this_process();
  const auto took = std::chrono::steady_clock::now() - begun;
  CHECK(took < std::chrono::seconds(2));  // generous: kMeasureMax, and a busy machine
  CHECK(first.link.alpha_s > 0 && first.link.beta_s_per_byte > 0 &&
        first.link.gamma_s_per_byte > 0);
  CHECK(&figures_of_this_process() == &first);
  std::printf("alpha %.3g us, beta %.3g, gamma %.3g ns/KiB, %s, factor %g, %.2f ms\n",
              1e6 * first.link.alpha_s, 1024e9 * first.link.beta_s_per_byte,
              1024e9 * first.link.gamma_s_per_byte, first.measured ? "measured" : "assumed",
              size_factor(first), std::chrono::duration<double, std::milli>(took).count());
}

TEST("figures survive the way to another rank") {
  const Figures sent = with(2.5e-7, 3e-11, 1.25e-11);
  const Figures got = parse_figures(serialize(sent));
  CHECK(got.measured && got.link.alpha_s == sent.link.alpha_s &&
        got.link.beta_s_per_byte == sent.link.beta_s_per_byte &&
        got.link.gamma_s_per_byte == sent.link.gamma_s_per_byte);
}

TEST("damaged or absurd figures fall back to the assumed ones") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const std::string& text : std::vector<std::string>{
           std::string(), std::string("1"), std::string("1 1e-7 1e-11"), std::string("hello"),
           serialize(with(2e-7, 3e-11, 1e-11)) + " 5", serialize(with(0, 3e-11, 1e-11)),
           serialize(with(-1e-7, 3e-11, 1e-11)), serialize(with(1, 3e-11, 1e-11)),
           serialize(with(1e-7, 0, 1e-11)), serialize(with(1e-7, 1, 1e-11)),
           serialize(with(1e-7, 3e-11, 1e300)), serialize(with(nan, 3e-11, 1e-11))}) {
    const Figures got = parse_figures(text);
    CHECK(!got.measured, text);
    CHECK(got.link.alpha_s == assumed_figures().link.alpha_s, text);
  }
  CHECK(size_factor(with(nan, nan, nan)) == 1);
}

TEST("figures move sizes by powers of two, within bounds, and noise below two moves nothing") {
  const LinkCost link = assumed_figures().link;
  const auto scaled = [&](double by) {
    return size_factor(with(link.alpha_s * by, link.beta_s_per_byte, link.gamma_s_per_byte));
  };
  CHECK(scaled(1) == 1 && scaled(1.9) == 1 && scaled(0.53) == 1);
  CHECK(scaled(2.1) == 2 && scaled(4.1) == 4 && scaled(50) == 4);
  CHECK(scaled(0.49) == 0.5 && scaled(0.24) == 0.25 && scaled(0.1) == 0.25);
}

TEST("dearer messages keep the algorithms of few steps up to larger sizes") {
  const auto choose = [](size_t bytes, double factor, bool one_host = true) {
    return select_algorithm(Collective::all_reduce, bytes, 4, one_host, {}, factor);
  };
  CHECK(choose(20000, 1) == "direct" && choose(20000, 2) == "recursive_doubling");
  CHECK(choose(4096, 1) == "one_shot" && choose(4096, 0.25) == "recursive_doubling");
  // What was measured in shared memory says nothing about the network.
  CHECK(choose(20000, 1, false) == choose(20000, 4, false));
  CHECK(select_algorithm(Collective::all_reduce, 20000, 4, true, {{Collective::all_reduce, "ring"}},
                         4) == "ring");
}
