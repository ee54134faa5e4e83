"""
Who is being metered: the tenant of the current context.

There are two places, because a context variable does not travel backwards: what an
endpoint sets in its own task or thread-pool thread, the middleware around it never sees
(measured: Starlette runs sync endpoints in a copied context). So a middleware installs
a `Holder`, which is shared by everything that the request does, and `tenant()` writes
to both: to the variable, for the code below it, and to the holder, for the middleware.
"""

from __future__ import annotations

from contextlib import suppress
from contextvars import ContextVar, Token
from types import TracebackType

from tallybook.event import check_tenant

__all__ = ["Holder", "current_tenant", "hold", "release", "tenant"]


class Holder:
    """
    A request's tenant, shared by all of its tasks and threads.

    Attributes:
        tenant: The tenant that was set last, or None.
    """

    __slots__ = ("tenant",)

    def __init__(self) -> None:
        self.tenant: str | None = None


_tenant: ContextVar[str | None] = ContextVar("tallybook_tenant", default=None)
_holder: ContextVar[Holder | None] = ContextVar("tallybook_holder", default=None)


class tenant:
    """
    Set the tenant of the current context; as a ``with`` block, only inside it.

    ::

        tallybook.tenant("acme")            # from here on, in this request or task
        with tallybook.tenant("acme"): ...  # in this block only

    Args:
        name: 1 to 255 bytes of text, or None: unattributed.

    Raises:
        InvalidEvent: The name is outside its bounds.
    """

    __slots__ = ("_before", "_token")

    def __init__(self, name: str | None) -> None:
        check_tenant(name)
        holder = _holder.get()
        self._before = holder.tenant if holder else None
        self._token: Token[str | None] = _tenant.set(name)
        if holder:
            holder.tenant = name

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # In another context, such as that of who closes an async generator, there is nothing
        # to give back, and it is no fault of the application's.
        with suppress(ValueError):
            _tenant.reset(self._token)
        holder = _holder.get()
        if holder:
            holder.tenant = self._before


def current_tenant() -> str | None:
    """The tenant of this task or thread; else of the request that it belongs to; else None."""
    name = _tenant.get()
    if name is not None:
        return name
    holder = _holder.get()
    return holder.tenant if holder else None


def hold() -> tuple[Holder, Token[Holder | None], Token[str | None]]:
    """
    Begin a request: a new holder, and no tenant from whatever ran in this context before.

    Returns:
        The holder, and what `release` needs.
    """
    holder = Holder()
    return holder, _holder.set(holder), _tenant.set(None)


def release(tokens: tuple[Holder, Token[Holder | None], Token[str | None]]) -> None:
    """End the request that `hold` began, in the same context."""
    _, holder, name = tokens
    with suppress(ValueError):
        _holder.reset(holder)
        _tenant.reset(name)
