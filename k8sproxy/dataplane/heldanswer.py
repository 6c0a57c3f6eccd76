"""What upstream may say where a session that must be recorded was not begun: a bounded answer, whole or not at all.

What comes without a switch of protocols is in no recording. An error's words are let through, up to what the tap
allows; so the answer is held until it is whole, and refused where it is longer.
"""

from __future__ import annotations

from k8sproxy.common.errors import Refusal
from k8sproxy.protocol.body import Body
from k8sproxy.protocol.http1 import ResponseHead


class HeldAnswer:
    """An answer that goes on only once it is whole, if it has `most` bytes at most."""

    __slots__ = ("body", "head", "held", "most")

    def __init__(self, head: ResponseHead, body: Body, most: int) -> None:
        self.head = head
        self.body = body
        self.most = most
        self.held = bytearray()

    def take(self, view: memoryview) -> bool:
        """Whether it is whole. Raises Refusal where it is too long, ProtocolError where its body is malformed."""
        if len(self.head.fields) + max(len(self.held) + len(view), self.head.content_length or 0) > self.most:
            raise too_long(self.most)
        self.held += view
        if not self.body.done:
            self.body.take(view)
        return self.body.done


def too_long(most: int) -> Refusal:
    """What is answered in place of more than `most` bytes."""
    return Refusal(
        403,
        "unrecordable_session",
        "this session must be recorded, but it cannot be: the API server answered without a switch of protocols, and "
        f"the answer has more than {most} bytes",
        close=True,
    )
