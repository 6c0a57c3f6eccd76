"""The one way in which the store fails, and the kind of it that does not pass."""

from __future__ import annotations

from recorder.model import UnreadableError


class StoreError(Exception):
    """The store can't do it. The message is fit for whoever sent the bytes: it names no path, no bucket, no secret."""


class DamagedError(StoreError, UnreadableError):
    """See UnreadableError."""
