"""What tests put into the graphs of dask: worker processes import it from here."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import numpy as np


def noted(block, path):
    """A block, with a line in a file for each time that it is computed, by whichever process."""
    if block.size:  # dask also calls it for an empty block, to see what it makes of it
        with Path(path).open("a") as file:  # short lines are appended whole
            file.write(f"{os.getpid()} {float(np.ravel(block)[0])!r}\n")
    return block


def killing(block, value, once=None):
    """The block that begins with this value kills its worker: each time, or until there is a file `once`."""
    if block.size and np.ravel(block)[0] == value and not (once and Path(once).exists()):
        if once:
            Path(once).touch()
            time.sleep(0.1)  # others of the worker's tasks have ended, and are lost
        os.kill(os.getpid(), signal.SIGKILL)
    return block


def interrupting(block, path):
    """The first block that finds a file sends a Ctrl-C to all processes of the program, as a terminal does."""
    if block.size:
        with suppress(FileNotFoundError):
            Path(path).unlink()
            os.killpg(os.getpgrp(), signal.SIGINT)
            time.sleep(1.0)
    return block


def interrupted_once(block, path, value):
    """The block that begins with this value, computed for the second time, sends a Ctrl-C to its process."""
    if block.size and np.ravel(block)[0] == value:
        with Path(path).open("a") as file:
            file.write(".")
        if Path(path).read_text() == "..":
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
    return block


def from_file(path, start, stop):
    """Rows of a .npy file."""
    return np.array(np.load(path, mmap_mode="r")[start:stop])


class Probe(float):
    """A number that writes down where it is unpickled."""

    def __new__(cls, value, path):
        self = super().__new__(cls, value)
        self.path = path
        return self

    def __reduce__(self):
        return unpickled, (float(self), self.path)


def unpickled(value, path):
    with Path(path).open("a") as file:
        file.write(f"{os.getpid()}\n")
    return Probe(value, path)
