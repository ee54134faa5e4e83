"""
What an operator may set, and its defaults.

Only what something obeys is here. The reasons for the numbers are in `limits`.
"""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, field_validator

from tallybook_server import limits

__all__ = ["DEFAULT_PORT", "Settings"]

DEFAULT_PORT: Final = 8255
"""TALL on a telephone's keys."""

_Count = Annotated[int, Field(ge=1)]
_Bytes = Annotated[int, Field(ge=1024)]
_Seconds = Annotated[float, Field(gt=0, le=3600)]


class Settings(BaseModel):
    """
    A server's settings.

    Attributes:
        directory: Where the books lie; the default book's ledger is in ``books/default``.
        host: The address to listen on. Only this machine's own, until there are API keys.
        port: The port; 0 lets the system choose.
        body_bytes_max: A request's body on the wire.
        body_raw_bytes_max: A request's body once decompressed.
        bodies_bytes_max: All bodies in memory at one time.
        body_seconds_max: For a body to arrive.
        question_bytes_max: A question that comes as JSON, on the wire and decompressed.
        head_bytes_max: A request's line and header fields.
        head_seconds_max: For a head to arrive.
        events_max: Events in one JSON request.
        connections_max: Open connections.
        queries_max: Questions that are worked on at one time.
        streams_max: Open streams of events.
        stream_keep_alive_seconds: A stream without events says this often that it lives.
        stall_seconds_max: For a client to take something of its answer.
        shutdown_seconds_max: For begun requests to be finished when the server stops.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    directory: Path
    host: str = "127.0.0.1"
    port: int = Field(default=DEFAULT_PORT, ge=0, le=65535)
    body_bytes_max: _Bytes = limits.BODY_BYTES_MAX
    body_raw_bytes_max: _Bytes = limits.BODY_RAW_BYTES_MAX
    bodies_bytes_max: _Bytes = limits.BODIES_BYTES_MAX
    body_seconds_max: _Seconds = limits.BODY_SECONDS_MAX
    question_bytes_max: _Bytes = limits.QUESTION_BYTES_MAX
    head_bytes_max: _Bytes = limits.HEAD_BYTES_MAX
    head_seconds_max: _Seconds = limits.HEAD_SECONDS_MAX
    events_max: _Count = limits.JSON_EVENTS_MAX
    connections_max: _Count = limits.CONNECTIONS_MAX
    queries_max: _Count = limits.QUERIES_MAX
    streams_max: _Count = limits.STREAMS_MAX
    stream_keep_alive_seconds: _Seconds = limits.STREAM_KEEP_ALIVE_SECONDS
    stall_seconds_max: _Seconds = limits.STALL_SECONDS_MAX
    shutdown_seconds_max: Annotated[int, Field(ge=1, le=3600)] = limits.SHUTDOWN_SECONDS_MAX

    @field_validator("host")
    @classmethod
    def _only_this_machine(cls, host: str) -> str:
        if host == "localhost":
            # The name may stand for two addresses, and port 0 would give each its own port.
            return "127.0.0.1"
        try:
            loopback = ip_address(host).is_loopback
        except ValueError:
            loopback = False
        if not loopback:
            raise ValueError(
                f"host is {host!r}; expected an address of this machine alone, such as "
                "127.0.0.1. The server has no API keys yet: whoever reaches it can read and "
                "add usage. Put a proxy that checks who calls in front of it"
            )
        return host

    @property
    def book(self) -> Path:
        """The directory of the default book."""
        return self.directory / "books" / "default"
