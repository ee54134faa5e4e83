"""``tallybook queue flush``: what dead producers left arrives once, or stays with a reason."""

from __future__ import annotations

import threading
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tallybook import Meter
from tallybook.queue import Queue
from tests.conftest import ServerProcess
from tests.sdk.cli.conftest import NOWHERE, Command, Die


class Answering(ThreadingHTTPServer):
    """A server that answers every request with one status, and remembers the keys."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.keys: list[str | None] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Answering)
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.keys.append(self.headers["Authorization"])
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def refusing() -> Generator[Answering]:
    """A server that knows nobody."""
    with Answering(401) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_dead_queue_goes_to_the_endpoint_that_it_names(
    tallybook: Command, queue: Path, die: Die, server: ServerProcess
) -> None:
    """Nothing has to be said: exit 0, counted once, no file left."""
    die(server.url, "acme", "acme", "globex")
    ran = tallybook("queue", "flush", "--json")

    assert ran.code == 0
    assert ran.json["sent"] == 3
    assert server.total("http.requests") == "3"
    assert not list(queue.glob("*.lock"))


def test_flushing_again_changes_no_total(
    tallybook: Command, die: Die, server: ServerProcess
) -> None:
    """There is nothing to flush the second time, and that is well."""
    die(server.url, "acme")
    tallybook("queue", "flush")
    ran = tallybook("queue", "flush", "--json")

    assert (ran.code, ran.json["sent"]) == (0, 0)
    assert server.total("http.requests") == "1"


def test_queues_of_two_endpoints_go_to_their_own(
    tallybook: Command, die: Die, server: ServerProcess
) -> None:
    """One endpoint that is away does not hold up the other, and nothing goes astray."""
    away = die(NOWHERE, "acme", "acme")
    die(server.url, "globex")
    ran = tallybook("queue", "flush", "--timeout", "0.3", "--json")

    assert ran.code == 3
    assert ran.json["sent"] == 1
    assert ran.json["pending"] == {away: 2}
    assert list(ran.json["errors"]) == [NOWHERE]
    assert server.total("http.requests") == "1"


def test_queue_of_another_endpoint_is_held(
    tallybook: Command, die: Die, server: ServerProcess
) -> None:
    """Naming a server does not redirect what is for another one: exit 1, and the reason."""
    other = die(NOWHERE, "acme")
    ran = tallybook("queue", "flush", "--endpoint", server.url, "--json")

    assert ran.code == 1
    assert ran.json["held"] == {other: f"meant for {NOWHERE}, not {server.url}"}
    assert server.total("http.requests") == "0"


def test_slash_behind_an_endpoint_is_no_other_server(
    tallybook: Command, die: Die, server: ServerProcess
) -> None:
    """The SDK compares endpoints by their text; a person does not."""
    die(server.url, "acme")

    assert tallybook("queue", "flush", "--endpoint", f"{server.url}/").code == 0
    assert server.total("http.requests") == "1"


def test_queue_without_an_endpoint_waits_for_one(
    tallybook: Command, die: Die, server: ServerProcess
) -> None:
    """Recorded with no endpoint set: nobody may guess where it goes."""
    nameless = die("", "acme")
    ran = tallybook("queue", "flush", "--json")

    assert ran.code == 1
    assert "--endpoint" in ran.json["held"][nameless]


def test_variable_does_not_claim_queues_without_an_endpoint(
    tallybook: Command, die: Die, server: ServerProcess
) -> None:
    """Only a person at the command line says where they go."""
    nameless = die("", "acme")
    ran = tallybook("queue", "flush", "--json", TALLYBOOK_ENDPOINT=server.url)

    assert ran.code == 1
    assert nameless in ran.json["held"]
    assert server.total("http.requests") == "0"


def test_queue_without_an_endpoint_goes_to_the_named_one(
    tallybook: Command, queue: Path, die: Die, server: ServerProcess
) -> None:
    """With --endpoint they are drained like the others."""
    die("", "acme", "acme")
    ran = tallybook("queue", "flush", "--endpoint", server.url)

    assert ran.code == 0
    assert server.total("http.requests") == "2"
    assert not list(queue.glob("*.lock"))


def test_mistyped_endpoint_binds_nothing(
    tallybook: Command, die: Die, server: ServerProcess
) -> None:
    """A queue without an endpoint that found nobody at one may go to another."""
    die("", "acme")
    assert tallybook("queue", "flush", "--endpoint", NOWHERE, "--timeout", "0.3").code == 3

    assert tallybook("queue", "flush", "--endpoint", server.url).code == 0
    assert server.total("http.requests") == "1"


def test_living_producer_is_left_alone(
    tallybook: Command, queue: Path, server: ServerProcess
) -> None:
    """Its queue has one connection, and that is its own."""
    with Meter("api", directory=queue, endpoint=NOWHERE) as meter:
        meter.record("calls")
        ran = tallybook("queue", "flush", "--json")

        assert (ran.code, ran.json["sent"], ran.json["held"]) == (0, 0, {})
        assert meter.stats().pending == 1


def test_refused_key_ends_at_once_with_a_finding(
    tallybook: Command, die: Die, refusing: Answering
) -> None:
    """Waiting mends no key: exit 1 long before the time is over, and everything is kept."""
    producer = die(refusing.url, "acme")
    ran = tallybook("queue", "flush", "--timeout", "50", "--json")

    assert ran.code == 1
    assert ran.json["pending"] == {producer: 1}
    assert "HTTP 401" in ran.json["errors"][refusing.url]


def test_api_key_goes_only_to_an_endpoint_that_is_named(
    tallybook: Command, die: Die, refusing: Answering
) -> None:
    """A queue may name a server of long ago; today's key is not for it."""
    die(refusing.url, "acme")
    tallybook("queue", "flush", TALLYBOOK_API_KEY="tb_1")
    tallybook("queue", "flush", "--endpoint", refusing.url, TALLYBOOK_API_KEY="tb_1")

    assert refusing.keys == [None, "Bearer tb_1"]


def set_aside(queue: Path, producer: str) -> None:
    """As if the server had refused everything that waits, for good."""
    blocks = Queue(queue / f"{producer}.db")
    blocks.settle([(block.id, "aside", "refused") for block in blocks.pending(10, 1 << 20)])
    blocks.close()


def test_aside_stays_and_is_a_finding(
    tallybook: Command, queue: Path, die: Die, server: ServerProcess
) -> None:
    """What the server refused for good is not sent by itself: exit 1 with the reason."""
    url = server.url
    server.kill()
    producer = die(url, "acme")
    tallybook("queue", "flush", "--timeout", "0.3")
    set_aside(queue, producer)
    server.start()
    ran = tallybook("queue", "flush", "--json")

    assert ran.code == 1
    assert "set aside" in ran.json["held"][producer]
    assert server.total("http.requests") == "0"


def test_retry_aside_sends_it_again(
    tallybook: Command, queue: Path, die: Die, server: ServerProcess
) -> None:
    """Once the server takes it, it counts, once, and the files go."""
    url = server.url
    server.kill()
    producer = die(url, "acme")
    tallybook("queue", "flush", "--timeout", "0.3")
    set_aside(queue, producer)
    server.start()
    ran = tallybook("queue", "flush", "--retry-aside")

    assert ran.code == 0
    assert server.total("http.requests") == "1"
    assert not list(queue.glob("*.lock"))


def test_words_say_what_is_left_and_why(tallybook: Command, die: Die) -> None:
    """Without --json: a line per queue, and the reason that sending fails."""
    producer = die(NOWHERE, "acme")
    ran = tallybook("queue", "flush", "--timeout", "0.3")

    assert ran.rows[1:] == [[producer, "1", "event", "waiting"]]
    assert f"{NOWHERE} has not taken everything" in ran.words
    assert "nothing is lost" in ran.words
