"""
JSON bodies: one object, read strictly.

JSON leaves open what a name means that is there twice, and readers differ: a proxy may have
checked the one value where the server takes the other. So it is refused, as is whatever else
only some readers take for JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Final, NoReturn, cast

from starlette.datastructures import Headers

from tallybook_server.problems import Problem

__all__ = ["JSON", "check_content_type", "read_object", "shown"]

JSON: Final = "application/json"

_SHOWN_CHARS: Final = 60


def check_content_type(headers: Headers, *kinds: str) -> str:
    """
    The one of *kinds* that the body is said to be, in lower case and without parameters.

    Raises:
        Problem: ``content-type-unsupported``.
    """
    content_type = headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in kinds:
        raise Problem(
            "content-type-unsupported",
            f"Content-Type is {content_type[:100]!r}; expected {' or '.join(kinds)}",
            headers={"Accept": ", ".join(kinds)},
        )
    return kind


def read_object(body: bytes, wrong: Callable[[str, str], Problem]) -> dict[str, object]:
    """
    The JSON object that *body* is.

    Args:
        body: The whole of it.
        wrong: Makes the problem of a field, by its name, that is there twice.

    Raises:
        Problem: ``not-json``, ``nested-too-deeply``, or what *wrong* makes.
    """

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)[:_SHOWN_CHARS]
            raise wrong(twice, f"{twice} is there twice; expected once")
        return fields

    try:
        document: object = json.loads(
            body.decode(), object_pairs_hook=once, parse_constant=_no_constant
        )
        # Half of a surrogate pair is JSON by its grammar, and no text that could be answered.
        json.dumps(document, ensure_ascii=False).encode()
    except RecursionError:
        raise Problem("nested-too-deeply", "the body is nested too deeply") from None
    except ValueError as error:
        raise Problem("not-json", f"the body is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise Problem("not-json", f"the body is {shown(document)}; expected a JSON object")
    return cast(dict[str, object], document)


def shown(value: object) -> str:
    """A value in a message: as JSON, which is what the sender wrote; the beginning of it."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 3]}..."


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
