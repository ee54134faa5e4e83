"""
The process whose children are killed.

It has imported everything and opened nothing, so a child of it begins to record within a
millisecond, and a thousand of them take minutes and not an hour. It reads one job a line
from stdin, forks, and writes to stdout:

    pid 4711        the child lives; some jobs say words of their own, such as `ready`
    dead -9         it and all children of it are gone; its exit code, or minus the signal
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from importlib import import_module

import httpx

__all__ = ["await_start", "main", "say"]

START = signal.SIGUSR1


def main() -> None:
    """Do jobs until stdin ends."""
    # Imported before the first fork, for the time that it takes; a client imports more.
    httpx.Client().close()
    for name in sys.argv[1:]:
        import_module(name)
    # A child sees the signal that starts it even if it comes before the child waits for it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {START})
    for line in sys.stdin:
        job = json.loads(line)
        module = import_module(job.pop("module"))
        _run(getattr(module, job.pop("function")), job)


def _run(function: object, arguments: Mapping[str, object]) -> None:
    alive, ends = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(alive)
        os._exit(_child(function, arguments))
    os.close(ends)
    # Whoever lives, child or grandchild, keeps the pipe open.
    os.read(alive, 1)
    os.close(alive)
    _, status = os.waitpid(pid, 0)
    say(f"dead {os.waitstatus_to_exitcode(status)}")


def _child(function: object, arguments: Mapping[str, object]) -> int:
    os.setpgid(0, 0)  # So that its children can be killed with it.
    say(f"pid {os.getpid()}")
    try:
        if not callable(function):
            raise TypeError(f"{function!r} is no job")
        function(**arguments)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def say(words: str) -> None:
    """A line to the test, in one write."""
    os.write(1, f"{words}\n".encode())


def await_start() -> None:
    """Wait for the test's signal: from here on a job is traced, and may be killed."""
    say("ready")
    signal.sigwait({START})


if __name__ == "__main__":
    main()
