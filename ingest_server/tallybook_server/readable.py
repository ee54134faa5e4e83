"""Bytes as JSON can show them. Pure."""

from __future__ import annotations

import base64
from typing import Literal

__all__ = ["readable"]


def readable(data: bytes) -> tuple[str, Literal["utf-8", "base64"]]:
    """*data* as text, and how: as it is, or in base64 where it is not UTF-8."""
    try:
        return data.decode(), "utf-8"
    except UnicodeDecodeError:
        return base64.b64encode(data).decode(), "base64"
