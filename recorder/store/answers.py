"""What an object store's answer means, read out of the text in which obstore tells it.

obstore knows a few kinds of errors and calls everything else "generic"; the status and the store's own code (S3's
`<Code>`, an Azure or GCS one) stand in its text alone. The text also names the bucket, the key and the endpoint, and
holds the store's answer, so nothing of it goes into a message but the status and the code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_STATUS = re.compile(r"status code: (\d{3})\b")
# In XML (S3, Azure, GCS) or JSON (GCS); letters alone, so that it can't be a name of somebody's.
_CODE = re.compile(r'<Code>([A-Za-z]{1,64})</Code>|"(?:code|reason)": ?"([A-Za-z]{1,64})"')
_ENOUGH = frozenset({"SlowDown", "SlowDownRead", "SlowDownWrite", "RequestLimitExceeded", "TooManyRequests"})
_REJECTED = "Server returned error response"  # a 200 with an error in it, as S3 does for several keys
_REDIRECT = "Received redirect without LOCATION"
_UNREADABLE = ("Got invalid", "InvalidDeleteObjectsResponse")


@dataclass(frozen=True, slots=True)
class Answer:
    """status: of HTTP, 0 where there was none. code: the store's own, or "". redirected, unreadable: see `words`."""

    status: int = 0
    code: str = ""
    redirected: bool = False
    unreadable: bool = False

    @property
    def came(self) -> bool:
        """Whether the store has answered at all."""
        return bool(self.status or self.code or self.redirected or self.unreadable)

    @property
    def enough(self) -> bool:
        """Whether it wants fewer requests."""
        return self.status == 429 or self.code in _ENOUGH

    @property
    def no_bucket(self) -> bool:
        """Whether the bucket, and not the key, is not there."""
        return self.code in ("NoSuchBucket", "ContainerNotFound")

    @property
    def unsupported(self) -> bool:
        """Whether it does not know how to do that."""
        return self.status in (405, 501) or self.code == "NotImplemented"

    def words(self, name: str) -> str:
        """A sentence without paths or secrets. name: what the error is called, where there is no answer."""
        what = ", ".join(filter(None, (f"HTTP {self.status}" if self.status else "", self.code)))
        if self.no_bucket:
            return "the recorder's store has no such bucket"
        if self.enough:
            return f"the recorder's store asks for fewer requests ({what})"
        if self.redirected:
            return "the recorder's bucket is in another region, or at another endpoint"
        if self.status in (401, 403):
            return f"the recorder's store refuses its credentials or its permissions ({what})"
        if self.unsupported:
            return f"the recorder's store does not support this request ({what})"
        if self.status >= 500:
            return f"the recorder's store failed ({what})"
        if what:
            return f"the recorder's store refused the request ({what})"
        if self.unreadable:
            return "the recorder's store gave an answer that cannot be read"
        return f"the recorder's store cannot be reached ({name})"


def read_answer(text: str) -> Answer:
    """Out of the text of an error."""
    text = text.partition("\n\nDebug source:")[0]
    status, code = _STATUS.search(text), _CODE.search(text)
    found = (code[1] or code[2]) if code is not None else ""
    return Answer(
        status=int(status[1]) if status is not None else 0,
        code=found,
        redirected=_REDIRECT in text,
        unreadable=any(word in text for word in _UNREADABLE) or (_REJECTED in text and not found),
    )
