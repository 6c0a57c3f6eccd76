"""`recorder completion`: a script for the shell."""

from __future__ import annotations

from k8sproxy.common.cli import completion_command

command = completion_command("recorder")
