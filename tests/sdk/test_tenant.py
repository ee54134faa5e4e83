"""Who is metered: in a block, a task, a thread, and a request that spans them."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator

import pytest

import tallybook
from tallybook import InvalidEvent, current_tenant
from tallybook.tenant import hold, release


def fresh() -> contextvars.Context:
    """A context in which nobody has set anything."""
    return contextvars.Context()


def test_without_anybody_it_is_nobody() -> None:
    """None: unattributed."""
    assert fresh().run(current_tenant) is None


def test_it_holds_from_here_on() -> None:
    """Without a block, in this context and what is started from it."""

    def run() -> str | None:
        tallybook.tenant("acme")
        return current_tenant()

    assert fresh().run(run) == "acme"


def test_a_block_ends() -> None:
    """Nested ones give back what was before."""

    def run() -> list[str | None]:
        seen = []
        with tallybook.tenant("a"):
            with tallybook.tenant("b"):
                seen.append(current_tenant())
            seen.append(current_tenant())
        return [*seen, current_tenant()]

    assert fresh().run(run) == ["b", "a", None]


def test_a_name_out_of_bounds_is_refused_and_changes_nothing() -> None:
    """At the call that sets it."""

    def run() -> str | None:
        tallybook.tenant("acme")
        with pytest.raises(InvalidEvent):
            tallybook.tenant("")
        return current_tenant()

    assert fresh().run(run) == "acme"


def test_a_request_sees_what_its_threads_and_tasks_set() -> None:
    """A context variable does not travel backwards; the holder does."""

    def run() -> str | None:
        tokens = hold()
        copied = contextvars.copy_context()
        thread = threading.Thread(target=copied.run, args=(tallybook.tenant, "acme"))
        thread.start()
        thread.join()
        seen = current_tenant()
        release(tokens)
        return seen

    assert fresh().run(run) == "acme"


def test_a_request_begins_with_nobody_and_leaves_nobody() -> None:
    """Whatever ran in this context before, and whatever runs after."""

    def run() -> list[str | None]:
        tallybook.tenant("before")
        tokens = hold()
        seen = [current_tenant()]
        tallybook.tenant("during")
        release(tokens)
        return [*seen, current_tenant()]

    assert fresh().run(run) == [None, "before"]


def test_tasks_do_not_see_each_other() -> None:
    """Each has its own."""

    async def one(name: str) -> str | None:
        tallybook.tenant(name)
        await asyncio.sleep(0)
        return current_tenant()

    async def run() -> list[str | None]:
        return list(await asyncio.gather(one("a"), one("b")))

    assert fresh().run(asyncio.run, run()) == ["a", "b"]


def test_a_block_that_ends_in_another_context_ends_quietly() -> None:
    """An async generator that is closed elsewhere: that is no fault of the application's."""

    async def stream() -> AsyncIterator[int]:
        with tallybook.tenant("acme"):
            yield 1
            yield 2

    async def run() -> None:
        generator = stream()
        context = contextvars.copy_context()
        await asyncio.create_task(anext_of(generator), context=context)
        await asyncio.create_task(close_of(generator))

    fresh().run(asyncio.run, run())


async def anext_of(generator: AsyncIterator[int]) -> int:
    """The next element."""
    return await anext(generator)


async def close_of(generator: AsyncIterator[int]) -> None:
    """End it."""
    await generator.aclose()  # type: ignore[attr-defined]
