// SPDX-License-Identifier: MIT
// The whole test framework of the C++ tests: TEST("a sentence") { CHECK(x == y, "context"); }.
// Each tests/cpp/*_test.cc is one program; `main` runs all tests, or those whose name contains
// argv[1].
#pragma once

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace check {

struct Test {
  const char* name;
  void (*body)();
};
inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}
struct Register {
  Register(const char* name, void (*body)()) { tests().push_back({name, body}); }
};
struct Failed : std::runtime_error {
  using std::runtime_error::runtime_error;
};
template <class... Parts>
std::string join(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

}  // namespace check

#define CHECK_JOIN2(a, b) a##b
#define CHECK_JOIN(a, b) CHECK_JOIN2(a, b)
#define TEST(sentence) TEST_AT(sentence, __LINE__)
#define TEST_AT(sentence, line)                                                          \
  static void CHECK_JOIN(test_, line)();                                                 \
  static check::Register CHECK_JOIN(register_, line)(sentence, CHECK_JOIN(test_, line)); \
  static void CHECK_JOIN(test_, line)()
#define CHECK(condition, ...)                                                          \
  do {                                                                                 \
    if (!(condition))                                                                  \
      throw check::Failed(check::join(__FILE__, ":", __LINE__, ": ", #condition, ": ", \
                                      "" __VA_OPT__(, ) __VA_ARGS__));                 \
  } while (false)

int main(int argc, char** argv) {
  const std::string filter = argc > 1 ? argv[1] : "";
  int failed = 0, passed = 0;
  for (const auto& test : check::tests()) {
    if (std::string(test.name).find(filter) == std::string::npos) continue;
    try {
      test.body();
      ++passed;
    } catch (const std::exception& error) {
      ++failed;
      std::printf("FAILED  %s\n        %s\n", test.name, error.what());
    }
    std::fflush(stdout);
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed || !passed;
}
