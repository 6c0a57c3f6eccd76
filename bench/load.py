"""The load generator (bench/peers/cmd/loadgen): one run, and the moment from which it counts."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from typing import Any


def run(command: Sequence[str], primed: Callable[[float], None] | None = None) -> dict[str, Any]:
    """Run it; what it prints. Raises RuntimeError where a request was not answered with 200.

    primed: called when every connection has had one answer, with the seconds that this took. What is measured begins
    then, so that neither handshakes nor the questions that a proxy asks about a new connection count as requests.
    """
    answer: dict[str, Any] = {}
    with subprocess.Popen([*command, *(["--prime"] if primed else [])], stdout=subprocess.PIPE, text=True) as running:
        for line in running.stdout or ():
            answer = json.loads(line)
            if primed and answer.get("state") == "primed":
                primed(answer["seconds"])
    if running.returncode or answer.get("errors"):
        raise RuntimeError(f"{answer.get('errors', 'all')} requests failed: {answer.get('last_error', 'see above')}")
    return answer
