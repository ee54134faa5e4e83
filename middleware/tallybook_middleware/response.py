"""
One response under WSGI: when it is complete, and how it can fail to become so.

It is complete with the chunk that reaches Content-Length, or, where there is none, when the
iterable ends. The event is recorded before that chunk is handed on. What is closed before
that was aborted.

A chunk counts when the server comes back for the next one, because it has taken it then.
Only the last chunk is counted before it is handed on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextvars import Token
from typing import Any, Final, cast

from tallybook.tenant import Holder, hold, release
from tallybook_middleware.files import FileCheck, size_of_file
from tallybook_middleware.recorder import Recorder
from tallybook_middleware.route import note_werkzeug

__all__ = ["Environ", "Response", "StartResponse"]

Environ = dict[str, Any]
StartResponse = Callable[..., Callable[[bytes], object]]

Tokens = tuple[Holder, Token[Holder | None], Token[str | None]]

_UNKNOWN: Final = sys.maxsize


class Response:
    """
    What goes between server and application: `start`, `write`, and the iterable itself.

    Attributes:
        usage: The request and its response, as numbers.
        holder: Where `tallybook.tenant` leaves a tenant.
        files: How to tell a result of ``wsgi.file_wrapper``.
    """

    def __init__(self, recorder: Recorder, environ: Environ, start_response: StartResponse) -> None:
        method = environ.get("REQUEST_METHOD", "GET")
        path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
        self.usage = recorder.begin(method)
        self.holder = Holder()
        self.files: FileCheck = bool
        self._recorder = recorder
        self._environ = environ
        self._start_response = start_response
        self._settled = recorder.excludes(environ, method, path)
        self._tenant: str | None = None
        self._length = _UNKNOWN
        self._pending = 0
        self._handed_on = False
        self._closed = False
        self._result: Iterable[bytes] = ()
        self._iterator: Iterator[bytes] | None = None

    def admit(self) -> bool:
        """Whether the application may run: there is a tenant, or nobody asks for one."""
        if self._settled:
            return True
        admitted, self._tenant = self._recorder.require(self._environ)
        return admitted

    def begin(self, holder: Holder) -> None:
        """The application is about to run, with *holder*: with the tenant, if it is known."""
        self.holder = holder
        if self._tenant is None:
            self._tenant = self._recorder.expect(self._environ)
        holder.tenant = self._tenant

    # -- start_response and write ----------------------------------------------------------

    def start(self, status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
        """The server's `start_response`; the last call that it accepts wins."""
        write = self._start_response(status, headers, *exc_info)
        if self._settled:
            return write
        try:
            self._note_start(status, headers)
        except Exception as error:
            self._recorder.faults.tell("a response could not be read", error)
        return self._counting(write)

    def _note_start(self, status: str, headers: list[tuple[str, str]]) -> None:
        usage = self.usage
        usage.status = int(status[:3])
        usage.route = note_werkzeug(self._environ) or usage.route
        self._length = 0 if usage.without_content() else _length(headers)

    def _counting(self, write: Callable[[bytes], object]) -> Callable[[bytes], object]:
        def counted(data: bytes) -> object:
            self._before(data)
            answer = write(data)
            self._accepted()
            return answer

        return counted

    def _before(self, data: bytes) -> None:
        """*data* is about to be handed on; if it completes the response, record that first."""
        if self._settled:
            return
        self._handed_on = True
        try:
            self._pending = len(data)
        except Exception as error:
            self._recorder.faults.tell("a chunk could not be counted", error)
        if self.usage.response_bytes + self._pending >= self._length:
            self._complete()

    def _accepted(self) -> None:
        """The server came back, so it took what it was handed."""
        self.usage.response_bytes += self._pending
        self._pending = 0

    def _complete(self) -> None:
        self._accepted()
        # Servers cut what is longer than its Content-Length.
        self.usage.response_bytes = min(self.usage.response_bytes, self._length)
        self._settle()

    # -- the iterable ----------------------------------------------------------------------

    def wrap(self, result: Iterable[bytes]) -> Iterable[bytes]:
        """What the server gets: a file, or a whole body, as it is; anything else through us."""
        if self._is_file(result):
            self._complete_file(result)
            return result
        if isinstance(result, (list, tuple)) and len(cast(list[bytes], result)) == 1:
            # A server adds a Content-Length to a single chunk, which it would not see here.
            self._before(next(iter(result)))
            self._complete()
            return result
        self._result = result
        return self

    def _is_file(self, result: object) -> bool:
        try:
            return self.files(result)
        except Exception as error:
            self._recorder.faults.tell("a response could not be read", error)
            return False

    def _complete_file(self, result: object) -> None:
        if self._length == _UNKNOWN and "response_bytes" in self._recorder.measures:
            try:
                self._pending = size_of_file(result)
            except Exception as error:
                self._recorder.faults.tell("the size of a file is not known", error)
        elif self._length != _UNKNOWN:
            self._pending = self._length
        self._complete()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        self._accepted()
        try:
            tokens = self._enter()
            try:
                if self._iterator is None:
                    self._iterator = iter(self._result)
                chunk = next(self._iterator)
            finally:
                self._leave(tokens)
        except StopIteration:
            self._ended()
            raise
        except BaseException as error:
            self.raised(error)
            raise
        self._before(chunk)
        return chunk

    def close(self) -> None:
        """Close what the application returned, once; what had not ended by now was aborted."""
        if self._closed:
            return
        self._closed = True
        tokens = self._enter()
        try:
            # A server need not ask for the body of a response that has none.
            self.usage.aborted = self._length > 0
            self._settle()
        finally:
            try:
                close = getattr(self._result, "close", None)
                if close is not None:
                    close()
            finally:
                self._leave(tokens)

    def _enter(self) -> Tokens:
        """The application's code is about to run, in whichever thread: with its tenant."""
        tokens = hold()
        tokens[0].tenant = self.holder.tenant
        return tokens

    def _leave(self, tokens: Tokens) -> None:
        self.holder.tenant = tokens[0].tenant
        try:
            release(tokens)
        except ValueError:
            pass  # The application left its context; that one's variables end with it.

    # -- the end ---------------------------------------------------------------------------

    def _ended(self) -> None:
        """The iterable came to its end."""
        usage = self.usage
        if usage.status is None:
            usage.status = 500  # It never called start_response, and the server has to.
        usage.aborted = usage.response_bytes < self._length != _UNKNOWN
        self._settle()

    def raised(self, error: BaseException) -> None:
        """The application raised, and nothing but that exception is going to leave."""
        if self._settled:
            return
        usage = self.usage
        usage.aborted = self._handed_on or not isinstance(error, Exception)
        if not self._handed_on:  # No header has been sent, so the server may still answer.
            usage.status = 500 if isinstance(error, Exception) else None
        self._settle()

    def _settle(self) -> None:
        """Record it, once."""
        if not self._settled:
            self._settled = True
            self._recorder.settle(self.usage, self._environ, self.holder, self._tenant)


def _length(headers: list[tuple[str, str]]) -> int:
    for name, value in headers:
        if name.lower() == "content-length":
            return max(0, int(value))
    return _UNKNOWN
