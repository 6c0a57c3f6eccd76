"""What the handlers share: where recordings are, who asks, and the book of who looked.

A look is written down before what was asked for is given, and where it can't be written nothing is given. A player
asks for a recording in many windows, which are one look: looks of the same kind at the same recording from the same
peer are joined for LOOK_JOINED.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog
from aiohttp import web

from k8sproxy.common.errors import Refusal
from k8sproxy.common.tailnet.peer import Peer
from recorder import access
from recorder.access import Access, Action, Scope
from recorder.model import End, Recording, is_id
from recorder.store import Reading
from recorder.web.archive import Archive
from recorder.web.kept import Keeps, Nothing

Find = Callable[[web.Request], Awaitable[Peer]]  # who is at the other end; raises Refusal

LOOK_JOINED = 600.0  # seconds; a pause longer than a coffee's is a new look
MAX_JOINED = 4096  # looks remembered; one that was forgotten is written down again, which harms nobody

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class WebConfig:
    """domain: of the capability "<domain>/cap/recorder". hosts: names (no ports) under which the site is reached; a
    request for another name is refused (DNS rebinding), an IP address as the Host never is. title: what it calls
    itself."""

    domain: str
    hosts: tuple[str, ...] = ()
    title: str = "Recorder"


class Site:
    """One for the application. keeps: the holds and acts; None where there are none. clock: unix seconds."""

    def __init__(
        self,
        store: Reading,
        archive: Archive,
        find: Find,
        config: WebConfig,
        *,
        keeps: Keeps | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.store = store
        self.keeps: Keeps = keeps if keeps is not None else Nothing()
        self.archive = archive
        self.config = config
        self.clock = clock
        self._find = find
        self._joined: OrderedDict[tuple[str, str, str], float] = OrderedDict()

    async def access(self, request: web.Request) -> Access:
        """Who asks and what they may see. Raises Refusal; 403 also for whoever may see nothing."""
        peer = await self._find(request)
        granted = access.rules(peer, self.config.domain)
        if not granted.sees:
            raise Refusal(403, "no_grant", "your tailnet's policy does not let you look at recordings")
        return granted

    async def recording(self, granted: Access, identifier: str, action: Action = Action.VIEW) -> Recording:
        """A recording that the peer may see, for an action that it may do.

        Raises Refusal: 404 for what is not there and, word for word the same, for what the peer can't see; 403 for
        what it sees and may not do.
        """
        missing = Refusal(404, "not_found", "there is no such session")
        if not is_id(identifier):
            raise missing
        try:
            recording = await self.store.get(identifier)
        except KeyError:
            raise missing from None
        if not granted.may(recording):
            raise missing
        if not granted.may(recording, action):
            raise Refusal(403, f"no_{action.value}", f"your tailnet's policy does not let you {_WORDS[action]}")
        return recording

    def may_read(self, granted: Access, recording: Recording) -> bool:
        """Whether what was on the screen may be shown: while a session runs that is watching it live."""
        return granted.may(recording, Action.LIVE if recording.end is End.RUNNING else Action.VIEW)

    async def look(
        self, granted: Access, kind: str, recording: Recording | None = None, detail: str = "", *, join: bool = True
    ) -> None:
        """Write down that the peer looks. Raises Refusal (503, look_not_kept), and then nothing may be shown."""
        peer = granted.peer
        identifier = recording.id if recording is not None else ""
        # The person too: a node may be signed in to by somebody else.
        key = (f"{peer.stable_id} {peer.node_name} {peer.login_name}", kind, f"{identifier} {detail}")
        now = self.clock()
        if join and now - self._joined.get(key, float("-inf")) < LOOK_JOINED:
            return
        try:
            await self.archive.add_look(peer, kind, identifier, now, detail=detail[:500])
        except Exception:
            _log.exception("look_not_kept", kind=kind, recording=identifier)
            raise Refusal(
                503,
                "look_not_kept",
                "the recorder cannot write down that you looked, so it shows nothing",
                retry_after=5,
            ) from None
        self._joined[key] = now
        self._joined.move_to_end(key)
        if len(self._joined) > MAX_JOINED:
            self._joined.popitem(last=False)


_WORDS = {
    Action.VIEW: "look at this session",
    Action.LIVE: "watch this session while it runs",
    Action.EXPORT: "download this session",
    Action.AUDIT: "see who looked at this session",
}

SITE = web.AppKey("SITE", Site)
ACCESS = web.RequestKey("ACCESS", Access)


def granted_to(request: web.Request) -> Access:
    """What the guard found for this request."""
    return request[ACCESS]


def audit_scope(request: web.Request) -> Scope:
    """Where the peer may see who looked. Raises Refusal (403)."""
    scope = granted_to(request).scope(Action.AUDIT)
    if not scope:
        raise Refusal(403, "no_audit", "your tailnet's policy does not let you see who looked")
    return scope
