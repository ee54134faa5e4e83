"""
Raw WSGI (PEP 3333): `UsageWSGIMiddleware`. What happens to one response is in `response`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from tallybook import Meter
from tallybook.clock import Clock
from tallybook.tenant import hold, release
from tallybook_middleware.exchange import REFUSAL
from tallybook_middleware.files import watch_file_wrapper
from tallybook_middleware.measure import Measure
from tallybook_middleware.recorder import SEEN, Exclude, OnMissing, Recorder
from tallybook_middleware.request_body import CountedInput
from tallybook_middleware.resolve import Resolver
from tallybook_middleware.response import Environ, Response, StartResponse

__all__ = ["UsageWSGIMiddleware"]

Application = Callable[[Any, Any], Iterable[bytes]]


class UsageWSGIMiddleware:
    """
    Records each request of a WSGI application.

    ::

        app.wsgi_app = UsageWSGIMiddleware(app.wsgi_app, tenant=header("x-tenant-id"))

    A request is recorded before the chunk that completes its response is handed on. No
    request fails, and none waits for the network, because of it.

    Args:
        app: The application.
        meter: Where it records; by default `tallybook.default_meter()`, from the first
            request on.
        tenant: A resolver: ``header(...)``, ``path_param(...)``, ``state(...)``, or a
            callable of the environ. It is asked before the application runs, so that what
            the application records has the tenant, too, and again when the response is
            complete, if it found nothing. Where it finds nothing then, `tallybook.tenant`
            decides.
        tags: More tags by name: fixed text, or a resolver. One that finds nothing, or
            something invalid, is left out.
        measure: Beside the number of requests: ``"request_bytes"``, ``"response_bytes"``,
            ``"duration"``.
        exclude: What is not recorded: methods and exact paths, or a callable of the environ.
        on_missing: Without a tenant: ``"unattributed"`` records without one, ``"skip"``
            records nothing, ``"refuse"`` answers 403 before the application runs.
        clock: For tests.

    Raises:
        ValueError: An option has a value that it cannot have.
    """

    def __init__(
        self,
        app: Application,
        *,
        meter: Meter | None = None,
        tenant: Resolver | None = None,
        tags: Mapping[str, str | Resolver] | None = None,
        measure: Collection[Measure] = (),
        exclude: Exclude = ("OPTIONS",),
        on_missing: OnMissing = "unattributed",
        clock: Clock | None = None,
    ) -> None:
        self.app = app
        self._recorder = Recorder(
            meter=meter,
            tenant=tenant,
            tags=tags,
            measure=measure,
            exclude=exclude,
            on_missing=on_missing,
            clock=clock,
        )

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        # A WSGI application inside of an ASGI one, recorded there: bridges pass the scope on.
        if SEEN in environ or SEEN in (environ.get("asgi.scope") or ()):
            return self.app(environ, start_response)
        environ[SEEN] = True
        response = self._begin(environ, start_response)
        if response is None:
            return self.app(environ, start_response)
        if self._recorder.refuses and not response.admit():
            return _refuse(start_response)
        return self._run(environ, response)

    def _begin(self, environ: Environ, start_response: StartResponse) -> Response | None:
        try:
            response = Response(self._recorder, environ, start_response)
            if "request_bytes" in self._recorder.measures:
                environ["wsgi.input"] = CountedInput(environ["wsgi.input"], response.usage)
            response.files = watch_file_wrapper(environ)
            return response
        except Exception as error:
            self._recorder.faults.tell("a request could not be observed", error)
            return None

    def _run(self, environ: Environ, response: Response) -> Iterable[bytes]:
        # A new holder, and no tenant: this thread's last request may have left one.
        tokens = hold()
        try:
            response.begin(tokens[0])
            result = self.app(environ, response.start)
            return response.wrap(result)
        except BaseException as error:
            response.raised(error)
            raise
        finally:
            release(tokens)


def _refuse(start_response: StartResponse) -> Iterable[bytes]:
    headers = [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Content-Length", str(len(REFUSAL))),
    ]
    start_response("403 Forbidden", headers)
    return [REFUSAL]
