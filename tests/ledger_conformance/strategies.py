"""
Worlds by chance: small ones, in which everything meets everything.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from hypothesis import strategies as st

from tallybook.event import Event
from tallybook_server.catalogue import Declaration
from tallybook_server.event_filter import EventFilter
from tallybook_server.question import (
    AGGREGATIONS,
    ORDERS,
    WINDOWS,
    Aggregation,
    TagFilter,
    TagTest,
    UsageQuery,
    Window,
)
from tests.ledger_conformance.chance import Chance
from tests.ledger_conformance.worlds import (
    Adjust,
    Ask,
    BackUp,
    Blocks,
    Declare,
    Json,
    Maintain,
    Reopen,
    Restore,
    Slice,
    Step,
    TakeBack,
    TakeBackAll,
    Undo,
    World,
)

MINUTE: Final = 60_000_000  # microseconds
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR

DIMENSIONS = ("a", "a", "b")
TENANTS = ("t", None, "u", "é")
TAG_KEYS = ("k", "k", "K", "it's")
# What LIKE, sorting by UTF-16 and a test for truth would get wrong.
TAG_TEXTS = ("v", "v", "", "v%", "vw", "V", "\uffee", "\U0001f600")
VALUES = (
    (1, 0),
    (0, 0),
    (2, 0),
    (3, 0),
    (7, 0),
    (5, 1),
    (50, 2),
    (10, 1),
    (1, 9),
    (2**63 - 1, 0),
    (2**63, 0),
    (2**63, 3),
    (10**38 - 1, 0),
    (10**38 - 1, 9),
)
NAMES = (None, None, None, "1", "2")


class Scene(NamedTuple):
    """A place, and a moment at which clocks or calendars do something there."""

    time_zone: str
    moment: int


SCENES = (
    Scene("UTC", 1_735_689_600_000_000),  # 2025 begins
    Scene("Europe/Berlin", 1_761_440_400_000_000),  # 2025-10-26: an hour is shown twice
    Scene("Europe/Berlin", 1_743_296_400_000_000),  # 2025-03-30: an hour is skipped
    Scene("Australia/Lord_Howe", 1_759_591_800_000_000),  # 2025-10-05: half an hour is skipped
    Scene("Australia/Lord_Howe", 1_743_865_200_000_000),  # 2025-04-06: half an hour comes twice
    Scene("Pacific/Apia", 1_325_239_200_000_000),  # 2011-12-30 is skipped
    Scene("America/Havana", 1_762_059_600_000_000),  # 2025-11-02: midnight is shown twice
    Scene("America/Sao_Paulo", 1_541_300_400_000_000),  # 2018-11-04: midnight is skipped
    Scene("Asia/Kathmandu", 1_709_230_500_000_000),  # 2024-03-01 begins, at 5:45 from UTC
)
OFFSETS = (0, 0, -1, 1, HOUR, -HOUR, HOUR - 1, -HOUR - 1, 30 * MINUTE, -MINUTE, 2 * MINUTE)
FAR_OFFSETS = (*OFFSETS, -DAY, DAY, DAY + 1, -3 * DAY, 31 * DAY, -31 * DAY, -400 * DAY, 400 * DAY)
NEAR = 3 * HOUR

# -- events ----------------------------------------------------------------------------------


def time(chance: Chance, scene: Scene) -> int:
    """The scene's moment, one that lies in some way beside it, or any that is near."""
    anywhere = chance.upto(2 * NEAR) - NEAR
    return scene.moment + chance.one_of((0, *OFFSETS, *FAR_OFFSETS, *[anywhere] * 8))


def tags(chance: Chance) -> dict[str, str]:
    """None, one or two."""
    return {chance.one_of(TAG_KEYS): chance.one_of(TAG_TEXTS) for _ in range(chance.below(3))}


def event(chance: Chance, scene: Scene, *, named: bool = False) -> Event:
    """An event that is like others in something; *named*: perhaps with an id or a key."""
    return Event(
        dimension=chance.one_of(DIMENSIONS),
        value=chance.one_of(VALUES),
        tenant=chance.one_of(TENANTS),
        time=time(chance, scene),
        tags=tags(chance),
        given=True,
        key=chance.one_of(NAMES) if named else None,
        id=chance.one_of(NAMES) if named else None,
    )


# -- questions -------------------------------------------------------------------------------

REACH: Final[dict[Window, int]] = {
    "minute": 2 * HOUR,
    "hour": 2 * DAY,
    "day": 9 * DAY,
    "week": 60 * DAY,
    "month": 200 * DAY,
    "quarter": 400 * DAY,
    "year": 400 * DAY,
    "none": 800 * DAY,
}
"""How far from the scene's moment a question reaches at most, so that no answer is long."""

LEVELS: Final[tuple[Aggregation, ...]] = ("last", "time_weighted")
TESTS: Final[tuple[TagTest, ...]] = ("in", "not_in", "prefix", "exists", "absent")
PERCENTILES = ("50", "99.9", "100", "33.3", "0.001")
SPLITS: Final[tuple[tuple[str, ...], ...]] = ((), ("k",), ("k", "it's"), ("K", "k"))


def query(chance: Chance, scene: Scene) -> UsageQuery:
    """A question over every field but `as_of`."""
    window = chance.often("none", WINDOWS)
    reach = REACH[window]
    start = scene.moment + chance.mostly(-reach, edges(chance, window))
    end = scene.moment + chance.mostly(reach, edges(chance, window))
    start, end = min(start, end), max(start, end)
    openly = chance.below(4) if window == "none" else 0  # Two of them: at one side.
    aggregation = chance.often(None, AGGREGATIONS)
    dimensions = (("a",), ("a",), ("a",), ("b",), ("a", "b"), ("b", "a"))
    return UsageQuery(
        dimensions=chance.one_of(dimensions),
        tenants=chance.mostly(None, (("t",), (None,), ("u", None))),
        start=None if openly == 1 else start,
        end=None if openly == 2 else end,
        window=window,
        month_day=chance.one_of((1, 2, 15, 30, 31)) if window == "month" else 1,
        time_zone=scene.time_zone,
        fill=chance.below(2) == 1,
        by_tenant=chance.below(2) == 1,
        by_tags=chance.one_of(SPLITS),
        filters=tuple(tag_filter(chance) for _ in range(chance.mostly(0, (1, 1, 2)))),
        aggregation=aggregation,
        unique_of=chance.one_of((None, "k")),
        percentile=chance.one_of((*PERCENTILES, None)),
        order=chance.mostly("group", ORDERS),
        top=chance.mostly(None, (1, 2)),
        skip=chance.mostly(0, (1, 3)),
        limit=chance.mostly(1_000, (2,)),
    )


def edges(chance: Chance, window: Window) -> list[int]:
    """Where a question may begin or end, from the scene's moment on."""
    reach = REACH[window]
    return [*(at for at in FAR_OFFSETS if abs(at) <= reach), chance.upto(2 * reach) - reach]


def tag_filter(chance: Chance) -> TagFilter:
    """A condition on one tag."""
    key, test = chance.one_of(TAG_KEYS), chance.one_of(TESTS)
    return TagFilter(key, test, () if test in ("exists", "absent") else chance.some(TAG_TEXTS, 2))


# -- what happens ----------------------------------------------------------------------------


def declaration(chance: Chance, scene: Scene, name: str) -> Declaration:
    """A dimension as anything, from always or from a moment on."""
    aggregation: Aggregation = chance.one_of((*AGGREGATIONS, *LEVELS, *LEVELS))
    return Declaration(
        name=name,
        unit=chance.one_of(("", "GB")),
        aggregation=aggregation,
        unique_of=chance.one_of((None, "k")) if aggregation == "unique" else None,
        percentile=chance.one_of(PERCENTILES) if aggregation == "percentile" else None,
        # At the scene's moment other windows begin, too: there a rule may change.
        start=chance.mostly(None, (scene.moment, scene.moment, time(chance, scene))),
    )


def choice(chance: Chance, scene: Scene) -> EventFilter:
    """Events of one dimension, by anything else."""
    return EventFilter(
        dimensions=(chance.one_of(DIMENSIONS),),
        tenants=chance.often(None, (("t",), (None,), ("u", None))),
        tags=tuple(tag_filter(chance) for _ in range(chance.below(2))),
        start=chance.often(None, (time(chance, scene),)),
        end=chance.often(None, (time(chance, scene),)),
    )


def slices(chance: Chance) -> tuple[Slice, ...]:
    """Blocks of any of the lives, in any order, any of them again."""
    return tuple(
        Slice(chance.below(LIVES), chance.often(0, range(6)), chance.often(6, range(1, 6)))
        for _ in range(chance.below(3) + 1)
    )


def step(chance: Chance, scene: Scene) -> Step:
    """Something that happens."""
    kind = chance.one_of(KINDS)
    if kind is Blocks:
        return Blocks(slices(chance))
    if kind is Json:
        many = range(chance.below(3) + 1)
        return Json(tuple(event(chance, scene, named=True) for _ in many))
    if kind is Adjust:
        mantissa, scale = chance.one_of(VALUES)
        return Adjust(event(chance, scene), (mantissa * chance.one_of((-1, 1)), scale))
    if kind is TakeBack:
        return TakeBack(chance.some(range(12), 3))
    if kind is TakeBackAll:
        return TakeBackAll(choice(chance, scene))
    if kind is Undo:
        return Undo(chance.below(3))
    if kind is Declare:
        return Declare(declaration(chance, scene, chance.one_of(DIMENSIONS)))
    if kind is Ask:
        return Ask(query(chance, scene))
    if kind is Restore:
        return Restore(goes_on=chance.below(2) == 1)
    if kind is BackUp:
        return BackUp()
    return Maintain() if kind is Maintain else Reopen()


OFTEN: Final = (Blocks, Json, Ask, Adjust, TakeBack, Undo, Declare)
SELDOM: Final = (TakeBackAll, Maintain, Maintain)
# Files are written, and a ledger opened: what costs as much as a whole world.
RARE: Final = (Reopen, Reopen, BackUp, Restore)
KINDS: Final = (*OFTEN * 24, *SELDOM * 12, *RARE)


def last_ask(chance: Chance, scene: Scene) -> Ask:
    """A question about now, or about an earlier time."""
    back = chance.mostly(None, range(8))
    return Ask(query(chance, scene), back, by_time=chance.below(3) == 2)


ENDINGS: Final[tuple[tuple[Step, ...], ...]] = (
    *[(Maintain(),)] * 12,
    (Maintain(), Maintain()),
    (Reopen(),),
    (Maintain(), Reopen()),
    (Restore(goes_on=True),),
)
"""What may happen before every question is put again."""


EVENT_BYTES, STEP_BYTES, LIVES, EVENTS, STEPS, ASKS = 12, 40, 3, 6, 8, 3
WORLD_BYTES: Final = 16 + LIVES * EVENTS * EVENT_BYTES + (1 + STEPS + ASKS) * STEP_BYTES


def world(data: bytes) -> World:
    """
    A world that begins with something and ends with questions.

    Each of its parts has bytes of its own, so that one can become smaller and the others stay.
    """
    header = Chance(data[:16])
    parts = iter(range(16, len(data), 4))

    def part(size: int) -> Chance:
        begin = next(parts)
        for _ in range(size // 4 - 1):
            next(parts)
        return Chance(data[begin : begin + size])

    scene = header.one_of(SCENES)
    declared = Declare(declaration(part(STEP_BYTES), scene, "a"))
    lives = [[event(part(EVENT_BYTES), scene) for _ in range(EVENTS)] for _ in range(LIVES)]
    steps = [step(part(STEP_BYTES), scene) for _ in range(STEPS)]
    asks = [last_ask(part(STEP_BYTES), scene) for _ in range(ASKS)]
    return World(
        lives=tuple(
            tuple(life[: header.below(EVENTS) + 1]) for life in lives[: header.below(LIVES) + 1]
        ),
        steps=(
            *header.often((), ((declared,),)),
            Blocks(slices(header)),
            *steps[: header.below(STEPS + 1)],
            *asks[: header.below(ASKS) + 1],
            *header.mostly((), ENDINGS),
        ),
    )


WORLDS = st.binary(min_size=WORLD_BYTES, max_size=WORLD_BYTES).map(world)
"""
One draw. Of several that are alike hypothesis makes most of its examples by copying one over
another: of 300 worlds, all but 50 asked questions that it had asked before.
"""
