"""
What the two middlewares share: the options, checked and obeyed.

The resolvers are the application's code, so they may raise, await, or find nonsense. None
of it reaches the request. What is not an Exception (a cancellation, a KeyboardInterrupt)
passes through, after what is known has been recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine, Mapping
from decimal import Decimal
from inspect import isawaitable
from typing import Any, Final, Literal

from tallybook import InvalidEvent, Meter
from tallybook.clock import Clock, SystemClock
from tallybook.event import check_tags, check_tenant
from tallybook.limits import TAGS_MAX
from tallybook.tenant import Holder
from tallybook_middleware.faults import Faults
from tallybook_middleware.measure import MEASURES, Measure, Usage
from tallybook_middleware.resolve import Found, Resolver, Source
from tallybook_middleware.writer import LOST, Plan, Writer

__all__ = ["SEEN", "Exclude", "OnMissing", "Recorder"]

OnMissing = Literal["unattributed", "skip", "refuse"]
Exclude = Collection[str] | Callable[[Any], bool]

SEEN: Final = "tallybook.seen"
"""In the scope, or environ, of a request that a middleware further outside records already."""

_OWN_TAGS_MAX: Final = 5  # method, status, route, outcome, code


class _Failed:
    """In the place of what a resolver would have found."""


_FAILED: Final = _Failed()
_Answer = Found | _Failed


class Recorder:
    """
    Records a request at its end, by the options of the middleware.

    Attributes:
        measures: What is measured beside the request itself.
        refuses: A request without a tenant is refused before the application runs.
        faults: Who hears of what went wrong.
        writer: The way onto the Meter.

    Raises:
        ValueError: An option has a value that it cannot have.
    """

    def __init__(
        self,
        *,
        meter: Meter | None,
        tenant: Resolver | None,
        tags: Mapping[str, str | Resolver] | None,
        measure: Collection[Measure],
        exclude: Exclude,
        on_missing: OnMissing,
        clock: Clock | None,
    ) -> None:
        self._monotonic = (clock or SystemClock()).monotonic
        self.faults = Faults(self._monotonic)
        self.writer = Writer(meter, self.faults)
        self.measures = _check_measures(measure)
        self._timed = "duration" in self.measures
        self._tenant = _check_tenant_option(tenant)
        self._fixed, self._resolved = _check_tags_option(tags)
        self._exclude = exclude if callable(exclude) else frozenset(_check_exclude(exclude))
        self._on_missing = on_missing
        self.refuses = on_missing == "refuse"
        if on_missing not in ("unattributed", "skip", "refuse"):
            raise ValueError(
                f"on_missing is {on_missing!r}; expected 'unattributed', 'skip' or 'refuse'"
            )
        if self.refuses and tenant is None:
            raise ValueError(
                "on_missing='refuse' needs tenant=: what the application says by "
                "tallybook.tenant() comes too late to refuse anything"
            )

    # -- before the application ------------------------------------------------------------

    def begin(self, method: str) -> Usage:
        """A request that begins now."""
        return Usage(method, self._monotonic() if self._timed else 0.0)

    def excludes(self, source: Source, method: str, path: str) -> bool:
        """Whether this request is not to be recorded; in doubt it is."""
        exclude = self._exclude
        if isinstance(exclude, frozenset):
            return method in exclude or path in exclude
        try:
            return bool(exclude(source))
        except Exception as error:
            self.faults.tell("exclude= failed, and the request is recorded", error)
            return False

    def require(self, source: Source) -> tuple[bool, str | None]:
        """For ``refuse``: whether the request may go on, and its tenant."""
        return _admit(self._settled(self._ask(self._tenant, source)))

    async def arequire(self, source: Source) -> tuple[bool, str | None]:
        """As `require`, with a resolver that may be async."""
        return _admit(await self._awaited(self._ask(self._tenant, source)))

    def expect(self, source: Source) -> str | None:
        """
        The tenant, if it can be told before the application runs.

        Then what the application records in this request has it, too. A resolver that needs
        what the application leaves on the request finds nothing here, or fails; it is asked
        again at the end, and only then is a failure a fault. One that is async is asked at
        the end only: the application does not wait for it.
        """
        if self._tenant is None:
            return None
        try:
            answer: Any = self._tenant(source)
            if isinstance(answer, Coroutine):
                answer.close()
                return None
            check_tenant(answer)
        except Exception:
            return None
        return answer if isinstance(answer, str) else None

    # -- at the end of the response --------------------------------------------------------

    def settle(self, usage: Usage, source: Source, holder: Holder, tenant: str | None) -> None:
        """
        Record *usage*.

        Args:
            usage: What the request and its response were.
            source: The scope or environ, for the resolvers.
            holder: Where `tallybook.tenant` left its tenant.
            tenant: What `require` or `expect` found.
        """
        try:
            answer: _Answer = tenant or self._settled(self._ask(self._tenant, source))
            tags = {name: self._settled(self._ask(r, source)) for name, r in self._resolved}
            plan = self._plan(usage, answer, tags, holder)
            if plan is not None:
                self.writer.write(plan)
        except Exception as error:
            self.faults.tell(LOST, error)

    async def asettle(
        self, usage: Usage, source: Source, holder: Holder, tenant: str | None
    ) -> None:
        """As `settle`, with resolvers that may be async, and awaiting the disk at ``power``."""
        answer: _Answer = tenant or _FAILED
        tags: dict[str, _Answer] = {}
        try:
            try:
                if tenant is None:
                    answer = await self._awaited(self._ask(self._tenant, source))
                for name, resolver in self._resolved:
                    tags[name] = await self._awaited(self._ask(resolver, source))
            except BaseException:  # Cancelled in a resolver: with what was found until then.
                plan = self._plan(usage, answer, tags, holder)
                if plan is not None:
                    self.writer.write(plan)
                raise
            plan = self._plan(usage, answer, tags, holder)
            if plan is not None:
                await self.writer.awrite(plan)
        except Exception as error:
            self.faults.tell(LOST, error)

    def _plan(
        self, usage: Usage, answer: _Answer, found: Mapping[str, _Answer], holder: Holder
    ) -> Plan | None:
        """What to record; None: ``skip``, and there is no tenant."""
        tenant: Any = holder.tenant if answer is None or answer is _FAILED else answer
        if tenant is None and answer is None and self._on_missing == "skip":
            return None
        if not (tenant is None or isinstance(tenant, str)):
            self.faults.tell(f"the tenant is a {type(tenant).__name__}, and not a str")
            tenant = None
        tags: dict[str, Any] = usage.tags()
        if self._fixed:
            tags.update(self._fixed)
        for name, value in found.items():
            if value is not None and value is not _FAILED:
                tags[name] = value
        values: list[tuple[str, int | Decimal]] = [(usage.dimension, 1)]
        if self.measures and usage.dimension == "http.requests":
            values += usage.values(self.measures, self._monotonic() if self._timed else 0.0)
        return Plan(tenant, tags, values)

    # -- asking resolvers ------------------------------------------------------------------

    def _ask(self, resolver: Resolver | None, source: Source) -> object:
        if resolver is None:
            return None
        try:
            return resolver(source)
        except Exception as error:
            self.faults.tell("a resolver failed", error)
            return _FAILED

    def _settled(self, answer: Any) -> _Answer:
        """The answer; where nobody can await one, an awaitable is a fault."""
        if answer.__class__ is str or not isawaitable(answer):
            return answer
        if isinstance(answer, Coroutine):
            answer.close()
        self.faults.tell("a resolver is async, and WSGI cannot await it")
        return _FAILED

    async def _awaited(self, answer: Any) -> _Answer:
        if answer.__class__ is str or not isawaitable(answer):
            return answer
        try:
            found: Found = await answer
            return found
        except Exception as error:
            self.faults.tell("a resolver failed", error)
            return _FAILED


def _admit(answer: _Answer) -> tuple[bool, str | None]:
    if isinstance(answer, _Failed):
        return True, None  # A fault of ours or of the resolver's refuses nobody.
    try:
        check_tenant(answer)
    except InvalidEvent:
        return False, None
    return answer is not None, answer if isinstance(answer, str) else None


def _check_measures(measure: Collection[str]) -> tuple[str, ...]:
    if isinstance(measure, str) or not MEASURES.issuperset(measure):
        raise ValueError(f"measure is {measure!r}; expected a collection of {sorted(MEASURES)}")
    return tuple(dict.fromkeys(measure))


def _check_tenant_option(tenant: Resolver | None) -> Resolver | None:
    if tenant is not None and not callable(tenant):
        raise ValueError(f"tenant is {tenant!r}; expected a resolver such as header('x-tenant-id')")
    return tenant


def _check_exclude(exclude: Collection[str]) -> Collection[str]:
    wrong = [entry for entry in exclude if not entry.startswith("/") and not entry.isupper()]
    if isinstance(exclude, str) or wrong:
        raise ValueError(
            f"exclude is {exclude!r}; expected a collection of methods in capitals and of paths "
            "that begin with a slash, or a callable"
        )
    return exclude


def _check_tags_option(
    tags: Mapping[str, str | Resolver] | None,
) -> tuple[dict[str, str], list[tuple[str, Resolver]]]:
    """Fixed tags, and those that are found in each request; InvalidEvent for a wrong one."""
    tags = tags or {}
    if len(tags) > TAGS_MAX - _OWN_TAGS_MAX:
        raise ValueError(
            f"tags has {len(tags)} entries; expected at most {TAGS_MAX - _OWN_TAGS_MAX}, since "
            f"{_OWN_TAGS_MAX} of the {TAGS_MAX} that an event can have are the middleware's"
        )
    check_tags(dict.fromkeys(tags, ""))
    fixed = check_tags({name: value for name, value in tags.items() if not callable(value)})
    return fixed, [(name, value) for name, value in tags.items() if callable(value)]
