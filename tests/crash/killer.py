"""
Kills a process before the n-th call of one kind that it makes, whichever thread makes it.

    python killer.py PID CALL NTH

CALL is the system call's number on this machine. ``attached`` on stdout says that from here
on calls are counted; end it, and the process goes on as if nothing had been.

strace counts for each thread of its own, and which of DuckDB's threads makes a call is
different each time: so the n-th call of one thread may never come. The kernel stops a thread
before it begins a call, and one that is killed there does not begin it: ptrace(2).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress

__all__ = ["Killer", "main"]

# From linux/ptrace.h; the same on every machine.
_SEIZE, _INTERRUPT, _LISTEN, _SYSCALL, _SYSCALL_INFO = 0x4206, 0x4207, 0x4208, 24, 0x420E
_OPTIONS = 0x1 | 0x8  # Mark the stops of system calls; follow new threads.
_EVENT_STOP = 128
_ENTRY = 1
_STOP_OF_A_CALL = signal.SIGTRAP | 0x80
_STOPS = frozenset({signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})
_ALL_THREADS = 0x40000000  # __WALL of waitpid(2).


class _Entry(ctypes.Structure):
    """struct ptrace_syscall_info, of a call that begins."""

    _fields_ = [
        ("kind", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 3),
        ("machine", ctypes.c_uint32),
        ("instruction", ctypes.c_uint64),
        ("stack", ctypes.c_uint64),
        ("call", ctypes.c_uint64),
        ("arguments", ctypes.c_uint64 * 7),
    ]


_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)


class Killer:
    """
    Attached to every thread of a process.

    Args:
        pid: The process.
        call: The system call's number.
        nth: Which call of that number it does not come to make, from 1.
    """

    def __init__(self, pid: int, call: int, nth: int) -> None:
        self._pid = pid
        self._call = call
        self._left = nth
        self._waited_for = {int(name) for name in os.listdir(f"/proc/{pid}/task")}
        for thread in self._waited_for:
            _ptrace(_SEIZE, thread, 0, _OPTIONS)
            _ptrace(_INTERRUPT, thread)

    def run(self) -> None:
        """Count until the process is dead."""
        with suppress(ChildProcessError):
            while True:
                thread, status = os.waitpid(-1, _ALL_THREADS)
                if os.WIFSTOPPED(status):
                    # A thread that another call has killed meanwhile cannot be let go on.
                    with suppress(ProcessLookupError):
                        self._stopped(thread, status >> 16, os.WSTOPSIG(status))
                self._arrived(thread)

    def _stopped(self, thread: int, event: int, number: int) -> None:
        if number == _STOP_OF_A_CALL:
            self._look(thread)
            _ptrace(_SYSCALL, thread)
        elif event == _EVENT_STOP and number in _STOPS:
            _ptrace(_LISTEN, thread)  # The whole process is stopped, and is to stay so.
        else:
            _ptrace(_SYSCALL, thread, 0, 0 if event else number)

    def _look(self, thread: int) -> None:
        entry = _Entry()
        _ptrace(_SYSCALL_INFO, thread, ctypes.sizeof(entry), ctypes.addressof(entry))
        if entry.kind == _ENTRY and entry.call == self._call:
            self._left -= 1
            if not self._left:
                os.kill(self._pid, signal.SIGKILL)

    def _arrived(self, thread: int) -> None:
        if thread in self._waited_for:
            self._waited_for.remove(thread)
            if not self._waited_for:
                print("attached", flush=True)


def _ptrace(request: int, thread: int, address: int = 0, data: int = 0) -> None:
    if _libc.ptrace(request, thread, address, data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace {request:#x} of thread {thread}: {os.strerror(number)}")


def main() -> None:
    """Attach, say so, and count."""
    pid, call, nth = map(int, sys.argv[1:])
    Killer(pid, call, nth).run()


if __name__ == "__main__":
    main()
