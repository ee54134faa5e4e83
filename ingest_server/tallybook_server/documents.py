"""
Small JSON documents in requests: one object, read strictly into its model.

What a model does not know is refused, as with query parameters: a misspelt field that is
passed over would store something else than what was meant.
"""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request

from tallybook_server.body import BodyBudget, read_body
from tallybook_server.json_body import JSON, check_content_type, read_object
from tallybook_server.limits import DOCUMENT_BYTES_MAX
from tallybook_server.problems import Problem, nearest
from tallybook_server.settings import Settings

__all__ = ["Document", "bounded", "read_document", "wrong"]


class Document(BaseModel):
    """A JSON object in a request."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True)


_Model = TypeVar("_Model", bound=Document)


async def read_document(
    request: Request, model: type[_Model], settings: Settings, budget: BodyBudget
) -> _Model:
    """
    The request's body as *model*.

    Raises:
        Problem: No JSON, too large, or not what the model says; the detail names the field.
    """
    check_content_type(request.headers, JSON)
    async with read_body(request.receive, request.headers, settings, budget) as body:
        if len(body) > DOCUMENT_BYTES_MAX:
            raise Problem(
                "body-too-large",
                f"the document has {len(body)} bytes; expected at most {DOCUMENT_BYTES_MAX}",
                more={"limit": "DOCUMENT_BYTES_MAX", "bytes_max": DOCUMENT_BYTES_MAX},
            )
        try:
            return model.model_validate(read_object(body, wrong))
        except ValidationError as error:
            raise _problem(error, model) from None


def wrong(field: str, detail: str) -> Problem:
    """The problem ``document-invalid``, naming the field."""
    return Problem("document-invalid", detail, more={"field": field})


def bounded(field: str, text: str, bytes_max: int, *, bytes_min: int = 0) -> str:
    """
    *text*, if it is printable and of *bytes_min* to *bytes_max* bytes.

    Raises:
        Problem: It is not, or is nothing but spaces where there must be something.
    """
    size = len(text.encode())
    if not (bytes_min <= size <= bytes_max and text.isprintable()) or (
        bytes_min and not text.strip()
    ):
        raise wrong(
            field,
            f"{field} is {text[:60]!r}, {size} bytes; expected {bytes_min} to {bytes_max} bytes of "
            "printable text",
        )
    return text


def _problem(error: ValidationError, model: type[Document]) -> Problem:
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    names = [one.alias or name for name, one in model.model_fields.items()]
    if first["type"] == "extra_forbidden":
        hint = ""
        if field in first["loc"]:  # And not a field of a field.
            hint = nearest(field, names) or f" There are: {', '.join(sorted(names))}."
        return Problem("field-unknown", f"there is no field {field[:60]!r}.{hint}")
    words = first["msg"].removeprefix("Value error, ")
    seen = repr(first["input"])[:60] if first["type"] != "missing" else "missing"
    return wrong(field, f"{field or 'the body'} is {seen}: {words}")
