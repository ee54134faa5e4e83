"""
The stream of events, over real sockets: each event once, whatever breaks in between.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from tallybook_server import stream
from tallybook_server.serve import serving
from tallybook_server.settings import Settings
from tests.conftest import ServerProcess
from tests.ingest_server.conftest import FaultyLedger, Running, Start

STREAM = "/v1/events/stream"


class Reader:
    """One stream that is read: its messages as (id, value), value None without data."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.last_id = ""
        self.lines = response.iter_lines()

    def __iter__(self) -> Iterator[tuple[str, str | None]]:
        value: str | None = None
        for line in self.lines:
            name, _, text = line.partition(": ")
            if name == "id":
                self.last_id = text
            elif name == "data":
                value = json.loads(text)["value"]
            elif not line:
                yield self.last_id, value
                value = None

    def take(self, count: int) -> list[str]:
        """The values of the next so many events."""
        found: list[str] = []
        while len(found) < count:
            _, value = next(iter(self))
            if value is not None:
                found.append(value)
        return found


@contextmanager
def reading(
    url: str, last_id: str | None = None, **parameters: str | list[str]
) -> Generator[Reader]:
    """A stream, begun: its first message, which names the place, has come."""
    headers = {} if last_id is None else {"Last-Event-ID": last_id}
    with (
        httpx.Client(timeout=30) as http,
        http.stream("GET", url + STREAM, params=parameters, headers=headers) as response,
    ):
        assert response.status_code == 200, response.read()
        reader = Reader(response)
        if last_id is None and "after" not in parameters:
            _, value = next(iter(reader))
            assert value is None
        yield reader


def url_of(server: Running) -> str:
    """Its address."""
    return str(server.http.base_url)


def post(url: str, *values: int, tenant: str = "acme", tags: int = 0) -> None:
    """Record an event per value; all of them are one entry. Each tag takes 250 bytes."""
    said = {"dimension": "calls", "tenant": tenant, "source": "test"}
    said_tags = {f"tag{at}": "x" * 243 for at in range(tags)}
    events = [said | {"value": value, "id": str(value), "tags": said_tags} for value in values]
    httpx.post(f"{url}/v1/events", json=events, timeout=30).raise_for_status()


def test_a_stream_begins_now(server: Running) -> None:
    """What was there before is not sent; what comes is, in its order."""
    url = url_of(server)
    post(url, 1, 2)
    with reading(url) as reader:
        assert reader.response.headers["Content-Type"] == "text/event-stream"
        assert reader.response.headers["Cache-Control"] == "no-store"
        post(url, 3)
        assert reader.take(1) == ["3"]
        post(url, 5, 4)
        assert reader.take(2) == ["5", "4"]


def test_a_stream_begins_behind_a_cursor(server: Running) -> None:
    """What is behind it is sent first; sealed or not makes no difference."""
    url = url_of(server)
    post(url, 1, 2, 3)
    server.ledger.sealer.step(force=True)
    post(url, 4)
    cursor = server.http.get("/v1/events").json()["data"][1]["cursor"]
    with reading(url, after=cursor) as reader:
        post(url, 5)
        assert reader.take(3) == ["3", "4", "5"]


def test_the_last_id_stands_above_the_parameter(server: Running) -> None:
    """A client that comes back sends both, and the parameter is that of its first time."""
    url = url_of(server)
    post(url, 1, 2, 3)
    with reading(url, after="0") as reader:
        assert reader.take(2) == ["1", "2"]
        last_id = server.http.get("/v1/events").json()["data"][1]["cursor"]
    with reading(url, last_id, after="0") as reader:
        assert reader.take(1) == ["3"]


def test_an_event_is_sent_as_it_is_listed(server: Running) -> None:
    """Its id is its cursor; a line separator in a text ends no line."""
    url = url_of(server)
    event = {"dimension": "calls", "id": "1", "source": "test", "tenant": "a\u2028\x85b"}
    with reading(url) as reader:
        httpx.post(f"{url}/v1/events", json=event).raise_for_status()
        # httpx, as many clients do, takes a line separator for the end of a line.
        lines = [next(reader.lines) for _ in range(3)]
    (listed,) = server.http.get("/v1/events").json()["data"]
    assert lines[0] == f"id: {listed['cursor']}"
    assert json.loads(lines[1].removeprefix("data: ")) == listed
    assert lines[2] == ""


def test_a_stream_is_filtered(server: Running) -> None:
    """Only what passes; the same parameters as a search."""
    url = url_of(server)
    with reading(url, tenant=["acme", ""], dimension="calls") as reader:
        post(url, 1)
        post(url, 2, 3, tenant="globex")
        post(url, 4)
        assert reader.take(2) == ["1", "4"]


def test_silence_moves_the_id(start: Start) -> None:
    """Who comes back is spared the search in what has not passed the filter."""
    server = start(stream_keep_alive_seconds=0.05)
    url = url_of(server)
    with reading(url, tenant="nobody") as reader:
        begun = reader.last_id
        post(url, 1, 2)
        post(url, 3)
        while reader.last_id == begun:
            _, value = next(iter(reader))
            assert value is None
    assert int(reader.last_id) > int(begun)


def test_a_busy_ledger_does_not_keep_a_stream_silent(start: Start) -> None:
    """Commits that it wakes for, and that bring it nothing, are no reason to say nothing."""
    server = start(stream_keep_alive_seconds=0.3)
    url = url_of(server)
    done = threading.Event()

    def busy() -> None:
        value = 0
        while not done.is_set():
            value += 1
            post(url, value, tenant="other")

    poster = threading.Thread(target=busy)
    poster.start()
    try:
        with reading(url, tenant="nobody") as reader:
            assert next(iter(reader))[1] is None
            assert next(iter(reader))[1] is None
    finally:
        done.set()
        poster.join()


def test_who_is_cut_off_before_the_first_event_misses_none(server: Running) -> None:
    """The first message has an id and nothing else."""
    url = url_of(server)
    with reading(url) as reader:
        last_id = reader.last_id
    post(url, 1)
    with reading(url, last_id) as reader:
        assert reader.take(1) == ["1"]


@pytest.fixture
def process(tmp_path: Path) -> Generator[ServerProcess]:
    """A server that can be killed."""
    process = ServerProcess(tmp_path / "data")
    process.start()
    yield process
    process.kill()


def test_every_event_comes_once_across_reconnects_and_restarts(process: ServerProcess) -> None:
    """Connections that break anywhere, kills and stops of the server, while events arrive."""
    total = 200

    def record() -> None:
        value = 0
        while value < total:
            try:
                post(process.url, *range(value, value + 5))
            except httpx.HTTPError:
                # The server is away. The same again: the ids make it count once.
                threading.Event().wait(0.02)
                continue
            value += 5

    recorder = threading.Thread(target=record)
    recorder.start()
    found: list[str] = []
    last_id = "0"
    ends = (None, None, process.kill, None, None, process.stop)
    try:
        for turn in range(100):
            # Some connections the client ends, within pages and between them; some the server.
            end = ends[turn % len(ends)]
            wanted = total if end is not None else len(found) + 1 + 17 * turn % 50
            ending = threading.Timer(0.2, end or int)
            ending.start()
            try:
                with reading(process.url, last_id) as reader:
                    for last_id, value in reader:  # noqa: B007
                        found += [] if value is None else [value]
                        if len(found) in (wanted, total):
                            break
            except httpx.HTTPError:
                pass  # Broken off in the middle; what came before is whole.
            ending.join()
            if len(found) == total:
                break
            if end is not None:
                process.start()
    finally:
        recorder.join()
    assert [int(value) for value in found] == list(range(total))


def test_two_streams_are_sent_the_same(server: Running) -> None:
    """Each has a cursor of its own; one ring wakes both."""
    url = url_of(server)
    with reading(url) as one, reading(url) as other:
        post(url, 1, 2)
        post(url, 3)
        assert one.take(3) == other.take(3) == ["1", "2", "3"]


def test_pages_are_bounded_by_events_and_bytes(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However small, nothing is left out between them."""
    url = url_of(server)
    monkeypatch.setattr(stream, "STREAM_PAGE_EVENTS", 7)
    monkeypatch.setattr(stream, "STREAM_PAGE_BYTES", 1_000)
    post(url, *range(50))
    with reading(url, after="0") as reader:
        assert reader.take(50) == [str(value) for value in range(50)]


# -- slow, gone and too many ---------------------------------------------------------------


def raw(server: Running) -> socket.socket:
    """A connection that has asked for the stream from the beginning."""
    line = socket.create_connection(server.address, timeout=30)
    line.sendall(f"GET {STREAM}?after=0 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return line


def large(url: str, count: int) -> None:
    """Record so many events of 8 KB each: more than the sockets between take up."""
    for first in range(0, count, 300):
        post(url, *range(first, first + 300), tags=32)


def values_in(data: bytes) -> list[str]:
    """The values of the events in an answer, chunk by chunk as it came."""
    lines = [line for line in data.split(b"\n") if line.startswith(b"data: ")]
    return [json.loads(line.removeprefix(b"data: "))["value"] for line in lines]


def is_whole(data: bytes, last: int) -> bool:
    """Whether the event of this value is there to its end."""
    return f'"value":"{last}"'.encode() in data[-9_000:] and data.endswith(b"\n\n\r\n")


def test_a_slow_reader_gets_everything_and_holds_up_nobody(server: Running) -> None:
    """It takes nothing for a while; others are served, and then it takes all."""
    url = url_of(server)
    large(url, 900)
    with raw(server) as line:
        with reading(url) as other:
            post(url, 900)
            assert other.take(1) == ["900"]
        assert server.usage(aggregation="count") == "901"
        data = b""
        while not is_whole(data, 900):
            piece = line.recv(1 << 20)
            assert piece
            data += piece
    assert values_in(data) == [str(value) for value in range(901)]


def test_a_reader_that_takes_nothing_is_cut_off(start: Start) -> None:
    """Its place is free again; what it has not taken, it finds behind its last id."""
    server = start(stall_seconds_max=0.2, streams_max=1)
    url = url_of(server)
    large(url, 900)
    with raw(server):
        until_free(url)


def test_a_reader_that_takes_little_by_little_is_not_cut_off(start: Start) -> None:
    """Longer than the limit in all, but never for so long without taking anything."""
    server = start(stall_seconds_max=0.5)
    url = url_of(server)
    large(url, 900)
    data = b""
    with raw(server) as line:
        begun = time.monotonic()
        while not is_whole(data, 899):
            slowly = time.monotonic() - begun < 3
            piece = line.recv(16 << 10 if slowly else 1 << 20)
            assert piece
            data += piece
            if slowly:
                threading.Event().wait(0.05)
    assert values_in(data) == [str(value) for value in range(900)]


def until_free(url: str) -> None:
    """Return once a stream can be opened."""
    for _ in range(300):
        with httpx.stream("GET", url + STREAM, timeout=30) as response:
            if response.status_code == 200:
                return
            response.read()
            assert response.json()["type"] == "/problems/too-many-streams"
        threading.Event().wait(0.05)
    pytest.fail("no place became free")


def test_more_streams_than_the_limit_are_refused(start: Start) -> None:
    """With a problem and when to come back; a question is still answered."""
    server = start(streams_max=2)
    url = url_of(server)
    with reading(url), reading(url):
        answer = server.http.get(STREAM)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
        assert answer.json()["streams_max"] == 2
        assert server.http.get("/v1/events").status_code == 200


def test_who_goes_away_makes_room(start: Start) -> None:
    """At once, without an event that would have to be sent first."""
    server = start(streams_max=1)
    url = url_of(server)
    for _ in range(3):
        with reading(url):
            pass
        until_free(url)


def test_streams_wait_without_a_place_of_a_question(start: Start) -> None:
    """One question at a time, and more streams than that."""
    server = start(queries_max=1)
    url = url_of(server)
    with ExitStack() as stack:
        readers = [stack.enter_context(reading(url)) for _ in range(5)]
        post(url, 1)
        assert server.usage() == "1"
        assert [reader.take(1) for reader in readers] == [["1"]] * 5


def test_nobody_is_called_while_nobody_listens(server: Running) -> None:
    """The ledger's writer has nothing to do for streams that are over."""
    url = url_of(server)
    with reading(url), reading(url):
        assert len(server.ledger.snapshots._listeners) == 1
    until_free(url)
    for _ in range(100):
        if not server.ledger.snapshots._listeners:
            break
        threading.Event().wait(0.05)
    assert not server.ledger.snapshots._listeners


def test_the_head_of_a_stream_has_no_body(server: Running) -> None:
    """Or HEAD would never end."""
    answer = server.http.head(STREAM)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/event-stream")


@pytest.mark.parametrize(
    ("query", "last_id"),
    [("limit=1", None), ("upto=1", None), ("tenant=a&after=x", None), ("", "x"), ("", "1.2.3")],
)
def test_a_wrong_question_is_refused_before_the_stream(
    shared: Running, query: str, last_id: str | None
) -> None:
    """As with any other question."""
    headers = {} if last_id is None else {"Last-Event-ID": last_id}
    assert shared.http.get(f"{STREAM}?{query}", headers=headers).status_code == 400


def test_a_cursor_beyond_the_head_is_of_another_ledger(server: Running) -> None:
    """To wait for it would be to leave out what comes before."""
    answer = server.http.get(STREAM, headers={"Last-Event-ID": "17.0"})
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/cursor-unknown")
    assert answer.json()["position"] == str(server.ledger.position())


# -- the end -------------------------------------------------------------------------------


def test_streams_end_with_the_server(tmp_path: Path) -> None:
    """Whole, and without waiting for the limit on begun requests."""
    settings = Settings(directory=tmp_path, port=0, shutdown_seconds_max=60)
    ended: list[str] = []
    begun = threading.Barrier(3)

    def read(url: str) -> None:
        with reading(url) as reader:
            begun.wait(20)
            for last_id, _ in reader:  # Ends without an error: the last chunk has come.
                ended.append(last_id)
        ended.append("end")

    with serving(FaultyLedger(settings.book), settings) as url:
        readers = [threading.Thread(target=read, args=(url,)) for _ in range(2)]
        for reader in readers:
            reader.start()
        begun.wait(20)
        stopped = time.monotonic()
    for reader in readers:
        reader.join()
    assert ended == ["end", "end"]
    assert time.monotonic() - stopped < 20


def test_a_fault_ends_the_stream_and_not_the_server(
    server: Running, caplog: pytest.LogCaptureFixture
) -> None:
    """The connection breaks, so that the client comes back with its last id."""
    url = url_of(server)
    with reading(url) as reader:
        server.ledger.broken = True
        post(url, 1)
        with pytest.raises(httpx.RemoteProtocolError):
            reader.take(1)
    server.ledger.broken = False
    assert "on purpose" in caplog.text
    with reading(url, reader.last_id) as reader:
        assert reader.take(1) == ["1"]
