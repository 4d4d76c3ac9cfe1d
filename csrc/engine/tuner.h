// SPDX-License-Identifier: MIT
// What a message and a byte cost on this machine, measured once for each process, and what follows
// for the choice of algorithms.
//
// Rank 0 of a group measures and publishes its figures with its address, so that all ranks choose
// by the same ones without another message; groups made later by the same process find them known.
// Measured is what shared memory does: a word to another core and back, a staged copy, an addition.
// A machine that is busy at that moment must not mislead a group: each figure is the best of
// several, figures out of bounds are dropped for assumed ones, and sizes at which algorithms change
// move by factors of two between a quarter and four times those of the machine on which they were
// found. Any thread; the first call takes some milliseconds: it waits for its second thread to run
// for kMeasurePatience at most, and measures for kMeasureMax at most.
#pragma once

#include <string>

#include "plan/cost.h"

namespace pycomm {

struct Figures {
  LinkCost link;
  bool measured = false;  // else assumed
};

// Those of the machine on which the sizes in select.cc were found.
Figures assumed_figures();
// Of this process, measured by the first call.
const Figures& figures_of_this_process();

// For addresses. What cannot be understood, or is out of bounds, gives assumed_figures().
std::string serialize(const Figures& figures);
Figures parse_figures(const std::string& text);

// The factor by which sizes at which algorithms change move: dearer messages favour few steps up to
// larger sizes, dearer bytes favour few bytes. A power of two, 1/4 to 4.
double size_factor(const Figures& figures);

}  // namespace pycomm
