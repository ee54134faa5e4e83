"""A server, asked or told something: one request, its answer or stream, or why there was none."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Final, Self, cast

from tallybook.cli.output import Exit, Failure
from tallybook.cli.parser import Parser
from tallybook.cli.stream import Message, read_messages
from tallybook.limits import REQUEST_TIMEOUT_SECONDS
from tallybook.settings import Settings, read_settings

__all__ = [
    "DEFAULT_ENDPOINT",
    "Answer",
    "Document",
    "Reply",
    "Server",
    "add_endpoint",
    "settings_of",
]

DEFAULT_ENDPOINT: Final = "http://127.0.0.1:8255"
"""Where ``tallybook serve`` listens when nobody says."""

_JSON: Final = "application/json"

Parameters = Sequence[tuple[str, str]]
Document = dict[str, object]


def add_endpoint(parser: Parser) -> None:
    """Declare ``--endpoint``."""
    parser.add_argument(
        "--endpoint",
        metavar="URL",
        help=f"the server; by default TALLYBOOK_ENDPOINT, else {DEFAULT_ENDPOINT}",
    )


def settings_of(
    *, source: str | None = None, endpoint: str | None = None, directory: str | None = None
) -> Settings:
    """
    The settings that a Meter would have, from arguments and the environment.

    Raises:
        InvalidSetting: One of them has a value that it cannot have.
    """
    return read_settings(os.environ, source=source, endpoint=endpoint, directory=directory)


@dataclass(frozen=True, slots=True)
class Reply:
    """
    What the server answered.

    Attributes:
        text: The document as it came.
        document: The same, read.
        time: The server's clock in seconds since 1970 UTC, to the second, or None.
    """

    text: str
    document: Document
    time: float | None


@dataclass(frozen=True, slots=True)
class Answer:
    """
    What the server answered, in whatever format.

    Attributes:
        where: The server, and what it was asked.
        content: The bytes as they came.
        headers: The header fields, their names in small letters.
    """

    where: str
    content: bytes
    headers: Mapping[str, str]

    def document(self) -> Document:
        """The document, where it is one; else the Failure of a server that is no tallybook."""
        document = _document(self.content)
        if document is None:
            raise self.stranger("something that is no document")
        return document

    def stranger(self, what: str) -> Failure:
        """The failure of a server that answers with *what* and is no tallybook."""
        return Failure(
            f"{self.where} answered with {what}; is it a tallybook server?", Exit.UNREACHABLE
        )


@dataclass(frozen=True, slots=True)
class Server:
    """
    A server to ask.

    Attributes:
        endpoint: Its URL.
    """

    endpoint: str
    api_key: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, endpoint: str | None) -> Self:
        """The one that is named here, in the environment, or by default."""
        settings = settings_of(endpoint=endpoint)
        return cls((settings.endpoint or DEFAULT_ENDPOINT).rstrip("/"), settings.api_key)

    def get(
        self,
        path: str,
        parameters: Parameters = (),
        *,
        timeout_seconds: float | None = REQUEST_TIMEOUT_SECONDS,
    ) -> Reply:
        """
        Ask for *path*; one attempt.

        Raises:
            Failure: The server refused the question, or there was no answer of a server.
        """
        return self._reply("GET", path, timeout_seconds, parameters=parameters)

    def send(
        self,
        method: str,
        path: str,
        document: Document,
        *,
        timeout_seconds: float | None = REQUEST_TIMEOUT_SECONDS,
    ) -> Reply:
        """
        Send *document* to *path*; one attempt.

        Raises:
            Failure: The server refused it, or there was no answer: then it may be stored.
        """
        return self._reply(method, path, timeout_seconds, document=document)

    def _reply(
        self,
        method: str,
        path: str,
        timeout_seconds: float | None,
        *,
        parameters: Parameters = (),
        document: Document | None = None,
    ) -> Reply:
        answer = self._exchange(
            method, path, _JSON, timeout_seconds, parameters=parameters, document=document
        )
        time = _time(answer.headers.get("date"))
        return Reply(document=answer.document(), text=answer.content.decode(), time=time)

    def ask(
        self, path: str, question: Mapping[str, object], *, accept: str, timeout_seconds: float
    ) -> Answer:
        """
        Post *question* as JSON to *path*; one attempt.

        Raises:
            Failure: The server refused the question, or there was no answer of a server.
        """
        return self._exchange("POST", path, accept, timeout_seconds, document=question)

    def _exchange(
        self,
        method: str,
        path: str,
        accept: str,
        timeout_seconds: float | None,
        *,
        parameters: Parameters = (),
        document: Mapping[str, object] | None = None,
    ) -> Answer:
        import httpx

        try:
            response = httpx.request(
                method,
                self.endpoint + path,
                params=list(parameters),
                json=document,
                # A refusal is a document, whatever the answer would have been.
                headers=self._headers(accept),
                timeout=timeout_seconds,
                follow_redirects=False,
            )
        except httpx.HTTPError as error:
            raise _no_answer(self.endpoint, error) from None
        if response.status_code not in (200, 201):
            raise _refusal(self.endpoint, response.status_code, _document(response.content))
        fields = {name.lower(): value for name, value in response.headers.items()}
        return Answer(f"{self.endpoint}{path}", response.content, fields)

    def stream(
        self, path: str, parameters: Parameters, *, silence_seconds: float
    ) -> Iterator[Message]:
        """
        What the server says at *path*, until it ends its answer.

        Args:
            path: Of a stream.
            parameters: What is asked for, and from where on.
            silence_seconds: A connection that says nothing for this long is lost.

        Raises:
            Failure: The server refused the question, or there was no answer, or it broke off.
        """
        import httpx

        try:
            with httpx.stream(
                "GET",
                self.endpoint + path,
                params=list(parameters),
                headers=self._headers("text/event-stream"),
                timeout=httpx.Timeout(REQUEST_TIMEOUT_SECONDS, read=silence_seconds),
                follow_redirects=False,
            ) as response:
                if response.status_code != 200:
                    document = _document(response.read())
                    raise _refusal(self.endpoint, response.status_code, document)
                yield from read_messages(response.iter_bytes())
        except httpx.HTTPError as error:
            raise _no_answer(self.endpoint, error) from None

    def _headers(self, accept: str) -> dict[str, str]:
        headers = {"Accept": accept}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        return headers


def _no_answer(endpoint: str, error: Exception) -> Failure:
    return Failure(
        f"no answer from {endpoint}: {str(error) or type(error).__name__}; is the server running "
        "there? tallybook serve starts one, --endpoint names another",
        Exit.UNREACHABLE,
    )


def _document(content: bytes) -> Document | None:
    try:
        document: object = json.loads(content)
    except ValueError:
        return None
    return cast(Document, document) if isinstance(document, dict) else None


def _refusal(endpoint: str, status: int, document: Document | None) -> Failure:
    if document is None or "title" not in document:
        return Failure(
            f"{endpoint} answered HTTP {status}; is it a tallybook server?", Exit.UNREACHABLE
        )
    # A fault of the server's passes, or is the server's; the question was right.
    code = Exit.UNREACHABLE if status >= 500 or status == 429 else Exit.USAGE
    title = str(document["title"]).removesuffix(".")
    return Failure(f"{title}: {document.get('detail', '')}", code)


def _time(date: str | None) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp() if date else None
    except ValueError:
        return None
