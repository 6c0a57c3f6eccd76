"""The one way in which the store fails."""

from __future__ import annotations


class StoreError(Exception):
    """The store can't do it. The message is fit for whoever sent the bytes: it names no path, no bucket, no secret."""
