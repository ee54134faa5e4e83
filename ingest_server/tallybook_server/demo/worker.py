"""
One worker of the sample SaaS: ``python -m tallybook_server.demo.worker FD``.

Every worker accepts from the same listening socket, which the demo holds open. So a worker
that is killed takes its own requests with it, and never the port.
"""

from __future__ import annotations

import socket
import sys

import uvicorn

from tallybook_server.demo.saas import app

__all__ = ["main"]

_GRACE_SECONDS = 3
"""For begun requests, when the demo asks the worker to end."""


class _Worker(uvicorn.Server):
    """uvicorn's; it says on standard output when it takes requests."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        print("ready", flush=True)


def main() -> None:
    """Serve until SIGTERM."""
    listening = socket.socket(fileno=int(sys.argv[1]))
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    _Worker(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
