"""PostgreSQL for the benchmark: a cluster of its own, on a loopback port, gone afterwards."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psycopg

__all__ = ["postgres"]

_ROOTS: Final = (Path("/usr/lib/postgresql"), Path("/usr/pgsql"))
_SETTINGS: Final = {
    "fsync": "on",
    "synchronous_commit": "on",
    "shared_buffers": "512MB",
    "max_wal_size": "4GB",
    "wal_compression": "on",
    "unix_socket_directories": "",
    "listen_addresses": "127.0.0.1",
}
_START_SECONDS: Final = 30.0


@contextmanager
def postgres(settings: Mapping[str, str] | None = None) -> Generator[str | None]:
    """
    A server, as a connection string; None where PostgreSQL is not installed.

    Durable: what it has committed is on the disk. Otherwise tuned in its favour.

    Args:
        settings: Further ones, or other ones than for ingest.
    """
    programs = _programs()
    if programs is None:
        yield None
        return
    directory = Path(tempfile.mkdtemp(prefix="tallybook-bench-pg-"))
    user = _user()
    if user is not None:
        os.chown(directory, user.pw_uid, user.pw_gid)
    who: dict[str, int] = {} if user is None else {"user": user.pw_uid, "group": user.pw_gid}
    environment = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    cluster = directory / "cluster"
    process: subprocess.Popen[bytes] | None = None
    try:
        subprocess.run(
            [programs / "initdb", "-D", cluster, "-U", "bench", "--auth=trust", "-E", "UTF8"],
            check=True,
            cwd=directory,
            env=environment,
            extra_groups=None if user is None else [],
            **who,  # type: ignore[call-overload]
            **quiet,
        )
        port = _free_port()
        chosen = _SETTINGS | dict(settings or {})
        options = [part for name, value in chosen.items() for part in ("-c", f"{name}={value}")]
        process = subprocess.Popen(
            [programs / "postgres", "-D", cluster, "-p", str(port), *options],
            cwd=directory,
            env=environment,
            extra_groups=None if user is None else [],
            **who,  # type: ignore[call-overload]
            **quiet,
        )
        dsn = f"host=127.0.0.1 port={port} user=bench dbname=postgres"
        _await(dsn)
        yield dsn
    finally:
        if process is not None:
            process.send_signal(signal.SIGINT)  # Do not wait for connections that are idle.
            process.wait(60)
        shutil.rmtree(directory, ignore_errors=True)


def _programs() -> Path | None:
    found = [path.parent for root in _ROOTS for path in root.glob("*/bin/initdb")]
    if not found:
        named = shutil.which("initdb")
        return Path(named).parent if named else None
    return max(found, key=lambda path: int(path.parent.name.split(".")[0]))


def _user() -> pwd.struct_passwd | None:
    """Whom to run as: it refuses to be root."""
    return pwd.getpwnam("postgres") if os.geteuid() == 0 else None


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _await(dsn: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            psycopg.connect(dsn, connect_timeout=5).close()
            return
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
