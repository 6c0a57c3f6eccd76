"""Keeps, finds and replays the sessions and events that k8sproxy (or any client of the same wire) sends."""

__version__ = "0.1.0"
