"""How long to wait before the next attempt: capped, with full jitter, without an end. Pure."""

from __future__ import annotations

from tallybook.limits import BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_MIN, RETRY_AFTER_SECONDS_MAX

__all__ = ["wait_seconds"]


def wait_seconds(failures: int, fraction: float, retry_after_seconds: float | None = None) -> float:
    """
    Seconds to wait after so many failures in a row.

    Full jitter (a draw from zero to the cap) spreads the producers of a fleet best when a
    server comes back. `Retry-After` is honoured as a floor, up to a limit: a garbled
    header must not stop sending for a year.

    Args:
        failures: 1 or more.
        fraction: A random number in [0, 1).
        retry_after_seconds: What the server asked for, or None.
    """
    # Beyond ten doublings the cap holds anyway, and the power would grow without end.
    cap = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_MIN * 2.0 ** min(failures - 1, 10))
    asked = min(max(retry_after_seconds or 0.0, 0.0), RETRY_AFTER_SECONDS_MAX)
    return asked + cap * fraction
