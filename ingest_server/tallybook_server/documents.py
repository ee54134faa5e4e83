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
from tallybook_server.limits import DOCUMENT_BYTES_MAX
from tallybook_server.problems import Problem, nearest
from tallybook_server.settings import Settings

__all__ = ["Document", "read_document"]

_JSON = "application/json"


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
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != _JSON:
        raise Problem(
            "content-type-unsupported",
            f"Content-Type is {content_type[:100]!r}; expected {_JSON}",
            headers={"Accept": _JSON},
        )
    async with read_body(request.receive, request.headers, settings, budget) as body:
        if len(body) > DOCUMENT_BYTES_MAX:
            raise Problem(
                "body-too-large",
                f"the document has {len(body)} bytes; expected at most {DOCUMENT_BYTES_MAX}",
                more={"limit": "DOCUMENT_BYTES_MAX", "bytes_max": DOCUMENT_BYTES_MAX},
            )
        try:
            return model.model_validate_json(bytes(body))
        except ValidationError as error:
            raise _problem(error, model) from None


def _problem(error: ValidationError, model: type[Document]) -> Problem:
    wrong = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in wrong["loc"])
    if wrong["type"] == "json_invalid":
        return Problem("not-json", f"the body is not a JSON object: {wrong['msg']}")
    names = [one.alias or name for name, one in model.model_fields.items()]
    if wrong["type"] == "extra_forbidden":
        hint = ""
        if field in wrong["loc"]:  # And not a field of a field.
            hint = nearest(field, names) or f" There are: {', '.join(sorted(names))}."
        return Problem("field-unknown", f"there is no field {field[:60]!r}.{hint}")
    words = wrong["msg"].removeprefix("Value error, ")
    seen = repr(wrong["input"])[:60] if wrong["type"] != "missing" else "missing"
    return Problem(
        "document-invalid", f"{field or 'the body'} is {seen}: {words}", more={"field": field}
    )
