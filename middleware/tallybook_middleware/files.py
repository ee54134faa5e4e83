"""
Files that a WSGI server sends by itself (``wsgi.file_wrapper``).

The server recognises what its own wrapper made, by class (gunicorn, wsgiref) or by identity
(uWSGI, whose wrapper is a function). So the result goes back to it as it is: a wrapper of
ours around it would turn sendfile into copying (getsentry/sentry-python#5107).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

__all__ = ["FileCheck", "size_of_file", "watch_file_wrapper"]

FileCheck = Callable[[object], bool]


def watch_file_wrapper(environ: dict[str, Any]) -> FileCheck:
    """How to tell a result that the server's file wrapper made."""
    wrapper = environ.get("wsgi.file_wrapper")
    if wrapper is None:
        return lambda result: False
    if isinstance(wrapper, type):
        return lambda result: isinstance(result, wrapper)
    made: list[object] = []

    def watched(*args: Any) -> Any:
        result = wrapper(*args)
        made.append(result)
        return result

    environ["wsgi.file_wrapper"] = watched
    return lambda result: any(result is one for one in made)


def size_of_file(result: Any) -> int:
    """
    The bytes from where the file stands to its end.

    Raises:
        OSError, AttributeError, ValueError: It is not known.
    """
    file = getattr(result, "filelike", result)
    return os.fstat(file.fileno()).st_size - int(file.tell())
