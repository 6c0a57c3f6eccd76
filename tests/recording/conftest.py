"""Recordings that wait for nothing, in every test of this folder."""

from __future__ import annotations

from tests.recording.atonce import at_once

__all__ = ["at_once"]
