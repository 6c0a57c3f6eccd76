"""The two ways in which something is turned down.

`ProtocolError` is what a parser in `protocol/` raises for bytes that are not what they claim to be. `Refusal` is an
answer: it knows its HTTP status and the Kubernetes `Status` object that kubectl prints, and travels as an exception
from wherever the flow stopped to the spine, which answers once. Both are leaves: they import nothing of ours.

A `Refusal`'s message is read by the client and written to the log, so whoever raises one keeps secrets out of it.
"""

from __future__ import annotations

import json

# meta/v1 StatusReason by HTTP status (apimachinery/pkg/apis/meta/v1/types.go); a status that is not here has no reason.
_REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    408: "Timeout",
    413: "RequestEntityTooLarge",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}


class ProtocolError(Exception):
    """Bytes that break their protocol. `status` is the HTTP status that fits if it has to be answered."""

    def __init__(self, message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


class Refusal(Exception):
    """A request (or a whole connection) that is turned down, and the answer that says so.

    status: the HTTP status, 400 to 599. message: one sentence for the client. cause: a short snake_case word, the
    `reason` label of the refusals metric and the log's key; it has few values, so it never holds input.
    retry_after: seconds, sent as Retry-After. close: the connection can't carry another request.
    """

    def __init__(
        self, status: int, cause: str, message: str, *, retry_after: int | None = None, close: bool = False
    ) -> None:
        super().__init__(message)
        self.status = status
        self.cause = cause
        self.message = message
        self.retry_after = retry_after
        self.close = close

    @property
    def reason(self) -> str:
        """The StatusReason of meta/v1, empty where it has none for this status."""
        return _REASONS.get(self.status, "")

    def status_object(self) -> dict[str, object]:
        """The Kubernetes Status (v1) as JSON values."""
        status: dict[str, object] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": f"k8sproxy: {self.message}",
            "reason": self.reason,
            "code": self.status,
        }
        if self.retry_after is not None:
            status["details"] = {"retryAfterSeconds": self.retry_after}
        return status

    def warning(self) -> bytes:
        """The message as the value of a Warning field (code 299), which kubectl prints (KEP-1693, API warnings)."""
        text = "".join(character if " " <= character <= "~" else "?" for character in self.message)
        return b'299 - "k8sproxy: ' + text.replace("\\", "\\\\").replace('"', '\\"').encode("ascii") + b'"'

    def body(self) -> bytes:
        """The Status as JSON text, with the line feed that the API server ends its own with."""
        return json.dumps(self.status_object()).encode() + b"\n"


class StartError(Exception):
    """A program cannot start, or cannot use a configuration that has no fault: an address is taken, a file is gone, a
    plugin fails. The message says why."""
