"""
The table of problem types: everything that can be wrong with a request or with an event.

A slug is an address and a promise: it is never renamed and never means something else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["EVENT_PROBLEMS", "REQUEST_PROBLEMS", "ProblemType"]


@dataclass(frozen=True, slots=True)
class ProblemType:
    """
    One way to be wrong.

    Attributes:
        slug: Its name and the last part of its address; stable.
        title: One sentence, the same each time.
        status: The HTTP status; for an event, that of an event posted alone.
        advice: What to do about it.
        retryable: The same request can succeed later, or over another connection.
        reason: For an event: the stable word in verdicts and rejections.
    """

    slug: str
    title: str
    status: int
    advice: str
    retryable: bool = False
    reason: str | None = None

    @property
    def path(self) -> str:
        """Its page on this server."""
        return f"/problems/{self.slug}"


REQUEST_PROBLEMS: Final = (
    ProblemType(
        "not-json",
        "The body is not JSON.",
        400,
        "Send one JSON object, or an array of objects, in UTF-8. NaN and Infinity are not "
        "JSON. Nothing of the request was stored.",
    ),
    ProblemType(
        "nested-too-deeply",
        "The JSON is nested too deeply.",
        400,
        "An event is an object whose only nested object is `tags`. Flatten what is inside.",
        reason="depth",
    ),
    ProblemType(
        "too-many-events",
        "The request has too many events.",
        413,
        "Send the events in several requests, each with its own Idempotency-Key if it needs "
        "one. Nothing of the request was stored.",
    ),
    ProblemType(
        "request-damaged",
        "The request was changed or cut off on the way.",
        400,
        "Send the same bytes again. Nothing of the request was stored.",
        retryable=True,
    ),
    ProblemType(
        "wrong-ledger",
        "The queue belongs to another ledger.",
        409,
        "The producer has delivered to another ledger before. Point it there, or give it a "
        "new queue directory. Nothing of the request was stored.",
    ),
    ProblemType(
        "busy",
        "The server takes nothing just now.",
        503,
        "Send it again after Retry-After seconds. Nothing of the request was stored.",
        retryable=True,
    ),
    ProblemType(
        "disk-full",
        "The ledger's disk refused the write.",
        507,
        "Make room on the server's disk. Senders keep what they have and try again. Nothing "
        "of the request was stored.",
        retryable=True,
    ),
    ProblemType(
        "body-too-large",
        "The request's body is too large.",
        413,
        "Send less in one request: the document names the limit, which holds for the bytes on "
        "the wire and, by its own name, for what they decompress to.",
    ),
    ProblemType(
        "body-too-slow",
        "The request's body did not arrive in time.",
        408,
        "Send it again, over a better line or in smaller requests. Nothing was stored.",
        retryable=True,
    ),
    ProblemType(
        "body-undecodable",
        "The body is not what its Content-Encoding says.",
        400,
        "Compress the body as one gzip member or one zstd frame, with nothing behind it.",
    ),
    ProblemType(
        "encoding-unsupported",
        "The Content-Encoding is not supported.",
        415,
        "Use gzip or zstd, one of them, or send the body as it is.",
    ),
    ProblemType(
        "content-type-unsupported",
        "The Content-Type is not supported.",
        415,
        "Send JSON as application/json, and blocks as application/vnd.tallybook.blocks.",
    ),
    ProblemType(
        "head-too-large",
        "The request's head is too large.",
        431,
        "Send fewer or shorter header fields.",
    ),
    ProblemType(
        "head-too-slow",
        "The request's head did not arrive in time.",
        408,
        "Send it again.",
        retryable=True,
    ),
    ProblemType(
        "not-http",
        "The request is not HTTP/1.1.",
        400,
        "Check that the client speaks plain HTTP/1.1 to this port.",
    ),
    ProblemType(
        "idempotency-key-invalid",
        "The Idempotency-Key is not acceptable.",
        400,
        "Send one Idempotency-Key of 1 to 255 printable ASCII characters.",
    ),
    ProblemType(
        "parameter-unknown",
        "There is no such parameter.",
        400,
        "Check the spelling. To filter by a tag, write tag.<key>=<value>.",
    ),
    ProblemType(
        "parameter-missing",
        "A parameter is missing.",
        400,
        "Add the parameter that the detail names.",
    ),
    ProblemType(
        "parameter-invalid",
        "A parameter has a value that it cannot have.",
        400,
        "Correct the parameter that the detail names.",
    ),
    ProblemType(
        "parameters-conflict",
        "Two parameters contradict each other.",
        400,
        "Leave out one of the two that the detail names.",
    ),
    ProblemType(
        "cursor-invalid",
        "The cursor does not belong to this question.",
        400,
        "Pass the cursor as it came, with the question that it came from; only `limit`, "
        "`explain` and the format may differ. Without a cursor, the first page comes anew.",
    ),
    ProblemType(
        "not-acceptable",
        "The answer does not come in this format.",
        406,
        "Accept one of application/json, text/csv, application/x-ndjson and "
        "application/vnd.apache.parquet, or name one by a suffix: /v1/usage.csv.",
    ),
    ProblemType(
        "aggregation-unfit",
        "The aggregation says nothing about this dimension.",
        422,
        "Ask for one that the detail names, or leave `aggregation` out: then what the dimension "
        "is declared as applies.",
    ),
    ProblemType(
        "rule-changes",
        "The dimension is declared in two ways within what would be one row.",
        422,
        "Ask for windows of which one begins when the declaration changes, or for the time before "
        "and from then on separately, or name an aggregation.",
    ),
    ProblemType(
        "position-unknown",
        "The ledger has no such position.",
        422,
        "Use a position that an answer named, or a time of recording.",
    ),
    ProblemType(
        "time-zone-unknown",
        "There is no such time zone.",
        400,
        "Use a name of the IANA time zone database, such as Europe/Berlin.",
    ),
    ProblemType(
        "too-many-rows",
        "The answer has too many rows.",
        422,
        "Ask for a shorter range, a longer window or fewer groups; or, for pages, set `limit`. "
        "An answer is never cut unasked.",
    ),
    ProblemType(
        "document-invalid",
        "The document in the request is not what it should be.",
        422,
        "Correct the field that the detail names. Nothing of the request was stored.",
    ),
    ProblemType(
        "dimension-unknown",
        "There is no such dimension.",
        404,
        "Check the spelling. A dimension is there once something was recorded of it, or once it "
        "was declared with PUT /v1/dimensions/{name}.",
    ),
    ProblemType(
        "correction-conflict",
        "Another correction has this id.",
        409,
        "An id means one correction for ever. If this is another correction, give it an id of "
        "its own; the one that is there is in GET /v1/adjustments.",
    ),
    ProblemType(
        "correction-unfit",
        "The correction can have no effect.",
        422,
        "Only sums are adjusted. Of anything else, void the events that are wrong and record the "
        "right ones.",
    ),
    ProblemType(
        "too-many-places",
        "What is to be taken back lies in too many places.",
        422,
        "Choose less time, or a whole producer: neighbouring events are one place.",
    ),
    ProblemType(
        "checkpoint-unknown",
        "There is no such checkpoint.",
        404,
        "Make one with POST /v1/checkpoints and publish it; GET /v1/checkpoints lists them.",
    ),
    ProblemType(
        "unproven",
        "The event is not among those that the checkpoint covers.",
        404,
        "Check the event's name. If it was recorded after the checkpoint, make a newer one.",
    ),
    ProblemType(
        "already-voided",
        "It was taken back before.",
        409,
        "There is nothing to do. To let it count again, void the void.",
    ),
    ProblemType(
        "event-name-invalid",
        "No event can have this name.",
        400,
        "Name it by producer and sequence, as <producer>-<sequence>, or by its place, as the "
        "cursor in a list: <position>.<index>.",
    ),
    ProblemType(
        "event-unknown",
        "There is no such event.",
        404,
        "GET /v1/events lists those that were accepted, GET /v1/rejections the others. What a "
        "producer has not delivered yet is missing in GET /v1/producers.",
    ),
    ProblemType(
        "too-many-streams",
        "The server feeds no more streams.",
        503,
        "Come again after Retry-After seconds, or read pages of GET /v1/events instead.",
        retryable=True,
    ),
    ProblemType(
        "cursor-unknown",
        "The cursor is not of this ledger.",
        409,
        "It is beyond the ledger's head: the ledger was restored from a backup, or it is "
        "another one. Decide what to go on with, and begin at the position that the detail "
        "names.",
    ),
    ProblemType(
        "backup-refused",
        "The directory is not one for this ledger's backup.",
        409,
        "Name a directory on the server's machine, by its whole path, that is empty, is not there, "
        "or holds an earlier backup of this ledger. Nothing was changed.",
    ),
    ProblemType(
        "backup-failed",
        "The backup could not be made.",
        500,
        "The backup that was there before is whole. Make room or mend what the detail names, and "
        "try again; where the ledger itself is at fault, run `tallybook verify`.",
    ),
    ProblemType("not-found", "There is nothing at this address.", 404, "GET / lists the routes."),
    ProblemType(
        "method-not-allowed",
        "This address does not take this method.",
        405,
        "Use a method that the Allow header names.",
    ),
    ProblemType(
        "internal",
        "The server failed.",
        500,
        "Send it again later: what was stored is counted once all the same. The server's log "
        "says what went wrong.",
        retryable=True,
    ),
)

EVENT_PROBLEMS: Final = (
    ProblemType(
        "event-invalid",
        "The event cannot be read.",
        422,
        "Send a JSON object with the fields that the reference names, of the right types.",
        reason="event",
    ),
    ProblemType(
        "event-too-large",
        "The event is too large.",
        422,
        "Leave out what is no part of an event; its bounds are in the reference.",
        reason="size",
    ),
    ProblemType(
        "field-unknown",
        "The event has a field that does not exist.",
        422,
        "Check the spelling; put what is yours under `tags`.",
        reason="unknown_field",
    ),
    ProblemType(
        "field-repeated",
        "The event names a field twice.",
        422,
        "Name each field and each tag once: which one was meant cannot be known.",
        reason="repeated_field",
    ),
    ProblemType(
        "text-invalid",
        "The event's text is not Unicode.",
        422,
        "Encode text as UTF-8, without halves of surrogate pairs.",
        reason="text",
    ),
    ProblemType(
        "dimension-invalid",
        "The event's dimension is missing or outside its bounds.",
        422,
        "Name what was used with 1 to 128 of a-z 0-9 _ . -",
        reason="dimension",
    ),
    ProblemType(
        "value-invalid",
        "The event's value is not a quantity that can be counted exactly.",
        422,
        "Send a number or decimal text: not negative, at most 38 digits, at most 9 behind the "
        "point.",
        reason="value",
    ),
    ProblemType(
        "tenant-invalid",
        "The event's tenant is outside its bounds.",
        422,
        "Send 1 to 255 bytes of text; leave the field out for usage that is nobody's.",
        reason="tenant",
    ),
    ProblemType(
        "time-invalid",
        "The event's time is not a moment.",
        422,
        "Send RFC 3339 with a zone, such as 2026-11-21T09:30:00Z, or microseconds since 1970.",
        reason="time",
    ),
    ProblemType(
        "time-in-future",
        "The event claims to be from the future.",
        422,
        "Set the sender's clock; the event is kept and can be replayed.",
        reason="future",
    ),
    ProblemType(
        "tags-invalid",
        "The event's tags are outside their bounds.",
        422,
        "Send an object of at most 32 tags whose values are text, numbers or booleans.",
        reason="tags",
    ),
    ProblemType(
        "key-invalid",
        "The event's key is outside its bounds.",
        422,
        "Send 1 to 255 bytes of text.",
        reason="key",
    ),
    ProblemType(
        "id-invalid",
        "The event's id is outside its bounds.",
        422,
        "Send 1 to 255 bytes of text.",
        reason="id",
    ),
    ProblemType(
        "source-invalid",
        "The event's source is missing or outside its bounds.",
        422,
        "Send the application's name as `source`, 1 to 128 bytes of text: it is what an id or a "
        "key is unique in.",
        reason="source",
    ),
    ProblemType(
        "identity-missing",
        "The event has no identity.",
        422,
        "Give it an `id` or a `key`, or the request an Idempotency-Key header: without one a "
        "repetition could not be told from new usage.",
        reason="identity",
    ),
    ProblemType(
        "nothing-to-void",
        "There is nothing to take back.",
        404,
        "Check the event's producer and sequence, or the correction's position. The request is "
        "kept as a rejection; send it again once the event is there.",
        reason="void",
    ),
    ProblemType(
        "identity-conflict",
        "Another event holds this identity.",
        422,
        "An identity counts once, for ever. If this is other usage, give it another identity; "
        "the event is kept as evidence and is not counted.",
        reason="conflict",
    ),
)
