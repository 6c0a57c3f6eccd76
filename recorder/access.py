"""Who may look at what: a peer's grants, read into rules, asked about recordings and events.

A grant gives a peer rules under "<domain>/cap/recorder":

    {"users": ["*@example.com"], "clusters": ["prod-*"], "namespaces": ["team-a"], "own": false,
     "view": true, "live": false, "export": false, "audit": false, "send": false}

A rule is a place and what may be done there. Its place is what all of its conditions hold for: `users`, `clusters` and
`namespaces` are globs in which `*` alone is special, and `own` narrows the place to sessions of the peer itself (of its
login name, or of its node where it is tagged). A condition that is not there holds for everything. Places of several
rules are united, and nothing of one rule lends itself to another: whoever may view A and export B can't export A.

What may be done: `view` (read what was recorded; without it the rule gives neither `live` nor `export`), `live` (watch
while it runs), `export` (download), `audit` (see who looked) and `send` (record here, which is the ingest's question).
`view` is true by default in a rule that names a place. A rule that names none is everywhere, and there every right must
be asked for in so many words: {"send": true}, as a proxy has it, lets nobody read.

A peer without rules gets nothing. A rule that can't be read refuses everything of that peer: it could be a condition
that is lost. So does a field that is not known: {"user": ["ana@example.com"], "view": true} would be a look at all.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NoReturn

from k8sproxy.common.errors import Refusal
from k8sproxy.common.tailnet.peer import Peer, Repeated
from recorder.model import Recording

# Of one peer. Every row of a query is asked about every one of them; more is a policy that generates itself.
MAX_RULES = 64
# In one list, for the same reason.
MAX_GLOBS = 256
# Characters of a glob. An e-mail address has at most 254, a DNS name 253; twice that is nobody's name.
MAX_GLOB = 512


class Action(enum.Enum):
    """What a rule may allow on a recording."""

    VIEW = "view"
    LIVE = "live"
    EXPORT = "export"
    AUDIT = "audit"


@dataclass(frozen=True, slots=True)
class Place:
    """What all of its conditions hold for. None: any value, the empty one too; an empty tuple: none at all.

    users, clusters, namespaces: globs. owner: a login name whose sessions alone are meant; owner_node: the same for a
    tagged node, its name without the final dot. Neither is ever "".
    """

    users: tuple[str, ...] | None = None
    clusters: tuple[str, ...] | None = None
    namespaces: tuple[str, ...] | None = None
    owner: str | None = None
    owner_node: str | None = None

    def holds(self, *, user: str, node: str, cluster: str, namespace: str, tagged: bool = False) -> bool:
        """Whether something is here. tagged: whether the node it came from has tags, and so `user` is a stand-in."""
        return (
            (self.owner is None or (self.owner == user and not tagged))
            and (self.owner_node is None or (self.owner_node == node and tagged))
            and all(
                globs is None or any(matches(glob, text) for glob in globs)
                for globs, text in ((self.users, user), (self.clusters, cluster), (self.namespaces, namespace))
            )
        )


ANYWHERE = Place()
Scope = tuple[Place, ...]  # what at least one of them holds for; the empty one is nothing


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule, checked; the place is with the peer's own name put in."""

    place: Place
    view: bool = False
    live: bool = False
    export: bool = False
    audit: bool = False
    send: bool = False

    def allows(self, action: Action) -> bool:
        """Whether it allows that in its place."""
        if action is Action.AUDIT:
            return self.audit
        return self.view and (action is Action.VIEW or (self.live if action is Action.LIVE else self.export))


@dataclass(frozen=True, slots=True)
class Access:
    """A peer and what its rules allow. The empty one allows nothing."""

    peer: Peer
    rules: tuple[Rule, ...] = ()

    def scope(self, action: Action = Action.VIEW) -> Scope:
        """Where that is allowed; () is nowhere."""
        places = dict.fromkeys(rule.place for rule in self.rules if rule.allows(action))
        return (ANYWHERE,) if ANYWHERE in places else tuple(places)

    def may(self, recording: Recording, action: Action = Action.VIEW) -> bool:
        """Whether that is allowed on this recording."""
        return holds(self.scope(action), recording)

    @property
    def sees(self) -> bool:
        """Whether there is anything at all that the peer may look at."""
        return bool(self.scope() or self.scope(Action.AUDIT))

    @property
    def sends(self) -> bool:
        """Whether the peer may record here."""
        return any(rule.send for rule in self.rules)


def holds(scope: Scope, recording: Recording) -> bool:
    """Whether a recording is in a scope."""
    return any(
        place.holds(
            user=recording.user,
            node=recording.node,
            cluster=recording.cluster,
            namespace=recording.namespace,
            tagged=bool(recording.tags),
        )
        for place in scope
    )


def capability(domain: str) -> str:
    """The capability's name under a domain of one's own."""
    return f"{domain}/cap/recorder"


def rules(peer: Peer, domain: str) -> Access:
    """What a peer may do. Raises Refusal (403, malformed_grant) for any rule with a fault."""
    name = capability(domain)
    values = peer.capabilities.get(name, ())
    if len(values) > MAX_RULES:
        raise Refusal(403, "malformed_grant", f"the capability {name} has {len(values)} rules; at most {MAX_RULES}")
    return Access(peer, tuple(_Fields(name, number, value).rule(peer) for number, value in enumerate(values, 1)))


def matches(glob: str, text: str) -> bool:
    """Whether the whole text is the glob's. `*` stands for any characters or none, and every other one for itself, in
    its own case. Takes time in proportion to glob times text at most, which a regular expression would not."""
    head, *rest = glob.split("*")
    if not rest:
        return text == glob
    *middle, tail = rest
    if not text.startswith(head) or not text.endswith(tail) or len(text) < len(head) + len(tail):
        return False
    at, end = len(head), len(text) - len(tail)
    for part in middle:
        found = text.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True


_PLACES = ("users", "clusters", "namespaces", "own")
_RIGHTS = ("view", "live", "export", "audit", "send")
_KNOWN = frozenset((*_PLACES, *_RIGHTS))


class _Fields:
    """One rule's JSON value and its checks; a fault names the capability, the rule and the field, never a value."""

    def __init__(self, capability: str, number: int, value: object) -> None:
        self._capability = capability
        self._number = number
        if isinstance(value, Repeated):
            self._refuse("", "names a field twice")
        if not isinstance(value, Mapping):
            self._refuse("", f"must be an object, not {_kind(value)}")
        self._values: dict[str, object] = {}
        for name, member in value.items():
            # In any case, as grants of Kubernetes are read: "Users" that went unseen would be a condition lost.
            folded = str(name).casefold()
            if folded not in _KNOWN:
                self._refuse(ascii(str(name)[:64]), "is not a field of a rule")
            if folded in self._values:
                self._refuse(folded, "is there twice, in different case")
            self._values[folded] = member

    def rule(self, peer: Peer) -> Rule:
        own = self._switch("own", False)
        place = Place(
            users=self._globs("users"),
            clusters=self._globs("clusters"),
            namespaces=self._globs("namespaces"),
            owner=peer.login_name if own and not peer.is_tagged else None,
            owner_node=peer.node_name.removesuffix(".") if own and peer.is_tagged else None,
        )
        if "" in (place.owner, place.owner_node):
            raise Refusal(
                403, "unusable_name", "the tailnet gives no name for this peer, so no session counts as its own"
            )
        somewhere = own or any(self._values.get(name) is not None for name in _PLACES[:3])
        return Rule(place, self._switch("view", somewhere), *(self._switch(name, False) for name in _RIGHTS[1:]))

    def _globs(self, field: str) -> tuple[str, ...] | None:
        value = self._values.get(field)
        if value is None:
            return None
        if not isinstance(value, list | tuple):
            self._refuse(field, f"must be a list of strings, not {_kind(value)}")
        if len(value) > MAX_GLOBS:
            self._refuse(field, f"has {len(value)} entries; at most {MAX_GLOBS} are allowed")
        globs = tuple(self._each(value, field))
        return None if "*" in globs else globs

    def _each(self, values: Iterable[object], field: str) -> Iterable[str]:
        for position, value in enumerate(values, 1):
            if not isinstance(value, str):
                self._refuse(field, f"(value {position}) must be a string, not {_kind(value)}")
            if not 0 < len(value) <= MAX_GLOB:
                self._refuse(field, f"(value {position}) must have 1 to {MAX_GLOB} characters")
            yield value

    def _switch(self, field: str, default: bool) -> bool:
        value = self._values.get(field)
        if value is None:
            return default
        if not isinstance(value, bool):
            self._refuse(field, f"must be true or false, not {_kind(value)}")
        return value

    def _refuse(self, field: str, fault: str) -> NoReturn:
        what = f"rule {self._number}: {field} {fault}" if field else f"rule {self._number} {fault}"
        raise Refusal(403, "malformed_grant", f"the capability {self._capability} is malformed: {what}")


def _kind(value: object) -> str:
    kinds = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return "null" if value is None else kinds.get(type(value), type(value).__name__)


Rules = Callable[[Peer], Access]  # `rules` with its domain put in
