# SPDX-License-Identifier: MIT
"""A contender for test_peers.py that needs no library: peer_program.py BEHAVIOUR WORLD.

Ranks compute what a collective would give from the known inputs of all ranks. Behaviours: good;
wrong: rank 1 is off by one; dies, hangs: rank 1 does so in its second timing; mute: rank 1 never
connects; ends: the command fails at once; slow: a call takes 50 ms; narrow: knows float32 only.
Each turn of rank 0 is noted in PEERS_TEST_LOG.
"""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from benchmarks.peers import elements, rank


class Pretender(rank.Contender):
    version = "pretender 1.0"

    def __init__(self, behaviour, number):
        self.behaviour, self.number = behaviour, number

    def allocate(self, dtype, count):
        words = np.zeros(count, elements.word_type(dtype))
        return words, words

    def bind(self, cell, source, target):
        if self.behaviour == "narrow" and cell.dtype != "float32":
            raise rank.Unsupported(f"no {cell.dtype}")
        if cell.collective == "barrier":
            return lambda: None
        result = elements.outputs(cell, self.number)

        def call():
            if self.behaviour == "slow":
                time.sleep(0.05)
            target[:] = result
            if self.behaviour == "wrong" and self.number == 1:
                target[0] += 1

        return call

    def barrier(self):
        pass


class Session(rank.Session):
    turns = 0

    def time(self, warm, calls, samples):
        self.turns += 1
        name = self.contender.behaviour
        log = os.environ.get("PEERS_TEST_LOG")
        if self.rank == 0 and log:
            with open(log, "a") as file:
                file.write(f"{name}\n")
        if self.rank == 1 and self.turns == 3 and name == "dies":
            print("pretender: out of luck", flush=True)
            os._exit(3)
        if self.rank == 1 and self.turns == 3 and name == "hangs":
            time.sleep(1000)
        super().time(warm, calls, samples)


def serve(behaviour, number, world):
    if behaviour == "mute" and number == 1:
        time.sleep(1000)
    Session(Pretender(behaviour, number), number, world).run()


if __name__ == "__main__":
    behaviour, world = sys.argv[1], int(sys.argv[2])
    if behaviour == "ends":
        sys.exit("pretender: no such device")
    sys.exit(rank.fork_ranks(world, lambda number: serve(behaviour, number, world)))
