"""What the tailnet's policy grants a peer for Kubernetes, read as Tailscale's own proxy reads it.

A grant gives a peer rules under the capability name `tailscale.com/cap/kubernetes`:

    {"impersonate": {"groups": ["system:masters"]}, "recorder": ["tag:rec"], "recorderAddrs": ["100.64.0.9:80"],
     "enforceRecorder": true, "enableEvents": true}

All rules count: groups and recorder addresses are united in order, the two switches are ORed. The name's old form
`https://tailscale.com/cap/kubernetes` gives groups alone, and counts only where the new name is absent. Rules of this
project's own capability (ownrules.py) count beside both.

The rules are written for a Go program (kube/kubetypes.KubernetesCapRule, decoded by encoding/json), and this must not
read them more mildly: field names match in any case, null is a field's zero value, unknown fields are ignored. What
encoding/json would refuse is refused, and so is what cannot stand in a header or could mean another group there, and
a field that stands in one rule twice, in one spelling or two. A rule with a fault refuses everything of that
peer, since a rule that is skipped could be the one that enforces recording.

An unknown field may be one of a later version of Tailscale's, or a misspelt `enforceRecorder`, which then enforces
nothing. So each one is noted (UnknownField), and the administrator of the proxy reads it in the log. A field that the
old name of the capability does not have is noted, too. GrantSettings.refuse_unknown makes an unknown field a fault.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import NamedTuple, NoReturn, TypeVar

from k8sproxy.access.caller import Caller
from k8sproxy.access.ownrules import DEFAULT_DOMAIN, RecordingLevel, own_capability, own_rules, strongest
from k8sproxy.access.spelling import nearest, shown
from k8sproxy.common.errors import Refusal
from k8sproxy.common.tailnet.peer import Peer, Repeated

CAPABILITY = "tailscale.com/cap/kubernetes"
LEGACY_CAPABILITY = "https://tailscale.com/cap/kubernetes"

# Bytes of UTF-8. An e-mail address has at most 254 and a DNS name 253 characters; twice that is nobody's name.
MAX_NAME = 512
# In all, after uniting. 256 groups of 512 bytes are 128 KiB of headers, an eighth of what the API server takes for a
# head (net/http.DefaultMaxHeaderBytes, 1 MiB), and every one is compared with every binding at each request.
MAX_GROUPS = 256
# In all, after uniting; those behind are left out, which takes nothing away from what is enforced. A session waits 5 s
# for a recorder and 2 s for each, so of those that hang later ones are never asked.
MAX_RECORDERS = 64

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_ADDRESS = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<four>[0-9.]+)):(?P<port>[0-9]{1,5})")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class GrantSettings:
    """How grants are read. capability_domain: of this project's own capability. refuse_unknown: an unknown field
    refuses the peer; otherwise it is told in the log and passed over."""

    capability_domain: str = DEFAULT_DOMAIN
    refuse_unknown: bool = False


DEFAULT_SETTINGS = GrantSettings()


class UnknownField(NamedTuple):
    """A field of a rule that says nothing to this program. rule: its number from 1 on. field: printable, with the
    object that it stands in. hint: what was probably meant, or ""."""

    capability: str
    rule: int
    field: str
    hint: str

    def __str__(self) -> str:
        return f"the capability {self.capability}: rule {self.rule} has the {self.short}"

    @property
    def short(self) -> str:
        """Without the place of the rule."""
        return f"unknown field {self.field}" + (f"; {self.hint}" if self.hint else "")


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a peer, checked: what it alone would grant.

    capability: the name under which it stood. groups: as written. recorder_tags: as the policy's author wrote them,
    for people. recorders: "IP:PORT" (IPv6 in brackets), as the control plane resolved the tags. unknown: its fields
    that say nothing.
    """

    capability: str
    groups: tuple[str, ...] = ()
    recorder_tags: tuple[str, ...] = ()
    recorders: tuple[str, ...] = ()
    enforce_recorder: bool = False
    enable_events: bool = False
    unknown: tuple[UnknownField, ...] = field(default=(), compare=False)

    @property
    def recording(self) -> RecordingLevel | None:
        """What the rule says of recording: closed where it enforces one, open where it names a recorder.

        By a tag or by an address: a tag that no node carries leaves no address, and asks for a recording all the same.
        """
        if self.enforce_recorder:
            return RecordingLevel.CLOSED
        return RecordingLevel.OPEN if self.recorder_tags or self.recorders else None


@dataclass(frozen=True, slots=True)
class Grants:
    """All rules of a peer united; without any rule, everything is empty.

    groups, recorders: in the order of the rules, without duplicates. recorders: "IP:PORT", IPv6 in brackets. recording:
    the strongest level that a rule of either capability asks for; None where no rule asks for a recording. unknown: of
    all rules.
    """

    groups: tuple[str, ...] = ()
    recorders: tuple[str, ...] = ()
    recording: RecordingLevel | None = None
    enable_events: bool = False
    unknown: tuple[UnknownField, ...] = field(default=(), compare=False)

    @property
    def enforced(self) -> bool:
        """Whether what has to be recorded, or told, must not go on without."""
        return self.recording is not None and self.recording.enforced


@dataclass(frozen=True, slots=True)
class Impersonation:
    """Whom a peer's requests are made as: the values of Impersonate-User and of each Impersonate-Group.

    Neither holds control characters or blanks at an end, so each can stand in a header (in UTF-8) and is read there
    as it is here.
    """

    user: str
    groups: tuple[str, ...] = ()


def parse_grants(peer: Peer, settings: GrantSettings = DEFAULT_SETTINGS) -> Grants:
    """The united rules of a peer. Raises Refusal (403, malformed_grant) for any rule with a fault."""
    rules, own = counted_rules(peer), own_rules(peer, settings.capability_domain)
    unknown = tuple(unread for rule in rules for unread in rule.unknown)
    if unknown and settings.refuse_unknown:
        raise Refusal(403, "malformed_grant", f"{unknown[0]} (refused by tailnet.unknownGrantFields)")
    groups = tuple(dict.fromkeys(group for rule in rules for group in rule.groups))
    recorders = tuple(dict.fromkeys(address for rule in rules for address in rule.recorders))[:MAX_RECORDERS]
    if len(groups) > MAX_GROUPS:
        raise Refusal(
            403,
            "malformed_grant",
            f"the capability {rules[0].capability} grants {len(groups)} groups; at most {MAX_GROUPS} are allowed",
        )
    levels = (*(rule.recording for rule in rules), *(rule.recording for rule in own))
    return Grants(
        groups=groups,
        recorders=recorders,
        recording=strongest(level for level in levels if level is not None),
        enable_events=any(rule.enable_events for rule in rules),
        unknown=unknown,
    )


def counted_rules(peer: Peer) -> tuple[Rule, ...]:
    """The rules of Tailscale's capability that count, in the order of the control plane.

    Raises Refusal (403, malformed_grant) for any rule with a fault.
    """
    if CAPABILITY in peer.capabilities:
        values = peer.capabilities[CAPABILITY]
        return tuple(_Fields(CAPABILITY, number, value).rule() for number, value in enumerate(values, 1))
    values = peer.capabilities.get(LEGACY_CAPABILITY, ())
    return tuple(_Fields(LEGACY_CAPABILITY, number, value).legacy_rule() for number, value in enumerate(values, 1))


def misspelt_capabilities(peer: Peer, domain: str = DEFAULT_DOMAIN) -> tuple[str, ...]:
    """Capabilities of a peer that are not read here and look as if they were meant to be, each as a sentence. The old
    name is one of them where the new one is there too.

    Only for who asks about the peer: another program's capability may have a name that is near.
    """
    own = own_capability(domain)
    notes = []
    if CAPABILITY in peer.capabilities and LEGACY_CAPABILITY in peer.capabilities:
        notes.append(
            f"the capability {LEGACY_CAPABILITY} is ignored: the peer has {CAPABILITY} too; move its rules there"
        )
    for name in peer.capabilities:
        place, _, last = name.rpartition("/")
        if name in (CAPABILITY, LEGACY_CAPABILITY, own) or not place.endswith("/cap"):
            continue
        near = nearest(last, ("kubernetes", "k8sproxy"), cutoff=0.8)
        if near is not None:
            meant = own if near == "k8sproxy" else CAPABILITY
            notes.append(f"k8sproxy does not read the capability {name}; did you mean {meant}?")
    return tuple(notes)


def impersonation(caller: Caller, grants: Grants) -> Impersonation:
    """Whom the caller is impersonated as.

    A user's node: the user's login name and the rules' groups; without a rule no group, and the API server's RBAC
    decides what that user may do. A tagged node: its own name, and the rules' groups or else its tags. Raises Refusal
    (403) where a name cannot be impersonated: unusable_name, reserved_name.
    """
    if caller.peer.is_tagged:
        user = _usable(caller.user, "node name")
        groups = grants.groups or tuple(map(_tag, caller.groups))
        if len(groups) > MAX_GROUPS:
            raise Refusal(403, "unusable_name", f"this peer has {len(groups)} tags; at most {MAX_GROUPS} are allowed")
    else:
        user = _usable(caller.user, "login name")
        groups = grants.groups
        if user == "tagged-devices":
            # WhoIs's stand-in user of every tagged node. Where the node's tags are not told, this is nobody's name.
            raise Refusal(403, "reserved_name", "the tailnet gives 'tagged-devices' as the login name, and no tags")
    if user.startswith("system:"):
        raise Refusal(
            403,
            "reserved_name",
            "the tailnet's name for this peer starts with 'system:', which Kubernetes reserves for its own components",
        )
    return Impersonation(user=user, groups=groups)


def _tag(tag: str) -> str:
    """A tag as a group. tailcfg.CheckTag: it starts with "tag:"; what does not could be a group of Kubernetes' own."""
    if not _usable(tag, "tag").startswith("tag:"):
        raise Refusal(403, "unusable_name", "the tag of this peer can't be impersonated: it does not start with 'tag:'")
    return tag


def _usable(name: str, what: str) -> str:
    fault = _fault_of_name(name)
    if fault is not None:
        raise Refusal(403, "unusable_name", f"the {what} of this peer can't be impersonated: it {fault}")
    return name


def _fault_of_name(name: str) -> str | None:
    """Why a name can't be sent as a header's value and mean itself there, as a predicate; None where it can."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "is not Unicode text (an unpaired surrogate)"
    if size == 0:
        return "is empty"
    if size > MAX_NAME:
        return f"is {size} bytes long; at most {MAX_NAME} are allowed"
    if _CONTROL.search(name) is not None:
        return "contains a control character"
    if name != name.strip():
        return "begins or ends with white space"
    return None


class _Fields:
    """One rule's JSON value and its checks; every fault it raises names the capability, the rule and the field."""

    def __init__(self, capability: str, number: int, value: object) -> None:
        self._capability = capability
        self._number = number
        self._unknown: list[UnknownField] = []
        self._values = self._members(value, "")

    def rule(self) -> Rule:
        groups = self._groups()
        return Rule(
            capability=self._capability,
            groups=groups,
            recorder_tags=self._list("recorder", _text),
            recorders=self._list("recorderAddrs", _address),
            enforce_recorder=self._switch("enforceRecorder"),
            enable_events=self._switch("enableEvents"),
            unknown=tuple(self._unknown),
        )

    def legacy_rule(self) -> Rule:
        """A rule under the old name. Its other fields are not taken, but are checked: Go decodes the same type."""
        groups = self.rule().groups
        for name in _TOP[1:]:
            if self._values.get(name.casefold()) is not None:
                self._note(shown(name), f"only {CAPABILITY} has this field")
        return Rule(capability=self._capability, groups=groups, unknown=tuple(self._unknown))

    def _groups(self) -> tuple[str, ...]:
        impersonate = self._members(self._values.get("impersonate"), "impersonate")
        return self._list("groups", _group, impersonate, "impersonate.")

    def _note(self, field: str, hint: str) -> None:
        self._unknown.append(UnknownField(self._capability, self._number, field, hint))

    def _note_unknown(self, name: str, field: str) -> None:
        """Note a field that nothing reads, of the rule itself or of its `impersonate`."""
        near = nearest(name, _INNER if field else _TOP)
        if near is not None:
            hint = f"did you mean {near}?"
        else:
            elsewhere = nearest(name, _TOP if field else _INNER)
            where = "beside impersonate" if field else "within impersonate"
            hint = f"did you mean {elsewhere}, {where}?" if elsewhere is not None else ""
        self._note(shown(f"{field}.{name}" if field else name), hint)

    def _members(self, value: object, field: str) -> dict[str, object]:
        """A JSON object by lower-cased field names (encoding/json matches names by case folding)."""
        if value is None:
            return {}
        if isinstance(value, Repeated):
            self._refuse(field, "names a field twice")
        if not isinstance(value, Mapping):
            self._refuse(field, f"must be an object, not {_kind(value)}")
        members: dict[str, object] = {}
        for name, member in value.items():
            folded = str(name).casefold()
            if folded in members and folded in _KNOWN:
                self._refuse(field, f"has the field {folded!r} twice, in different case")
            if folded not in (_INNER if field else _TOP_FOLDED):
                self._note_unknown(str(name), field)
            members[folded] = member
        return members

    def _list(
        self, field: str, check: Callable[[object], _T], values: Mapping[str, object] | None = None, within: str = ""
    ) -> tuple[_T, ...]:
        listed = (self._values if values is None else values).get(field.casefold())
        if listed is None:
            return ()
        if not isinstance(listed, list | tuple):
            self._refuse(within + field, f"must be a list of strings, not {_kind(listed)}")
        checked = []
        for position, value in enumerate(listed, 1):
            try:
                checked.append(check(value))
            except ValueError as error:
                self._refuse(within + field, f"(value {position}) {error}")
        return tuple(checked)

    def _switch(self, field: str) -> bool:
        value = self._values.get(field.casefold())
        if value is None:
            return False
        if not isinstance(value, bool):
            self._refuse(field, f"must be true or false, not {_kind(value)}")
        return value

    def _refuse(self, field: str, fault: str) -> NoReturn:
        what = f"rule {self._number}: {field} {fault}" if field else f"rule {self._number} {fault}"
        raise Refusal(403, "malformed_grant", f"the capability {self._capability} is malformed: {what}")


_TOP = ("impersonate", "recorder", "recorderAddrs", "enforceRecorder", "enableEvents")
_TOP_FOLDED = frozenset(map(str.casefold, _TOP))
_INNER = ("groups",)
_KNOWN = _TOP_FOLDED | frozenset(_INNER)


def _kind(value: object) -> str:
    """What JSON calls the value, for messages; the value itself stays out of them."""
    kinds = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return kinds.get(type(value), type(value).__name__)


def _text(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"must be a string, not {_kind(value)}")
    return value


def _group(value: object) -> str:
    text = _text(value)
    fault = _fault_of_name(text)
    if fault is not None:
        raise ValueError(fault)
    return text


def _address(value: object) -> str:
    """Canonical "IP:PORT". As Go's netip.ParseAddrPort, but without zones (no tailnet address has one) and port 0."""
    match = _ADDRESS.fullmatch(_text(value))
    if match is not None and 0 < int(match["port"]) < 65536:
        try:
            host = f"[{IPv6Address(match['six'])}]" if match["six"] else str(IPv4Address(match["four"]))
            return f"{host}:{int(match['port'])}"
        except AddressValueError:
            pass
    raise ValueError("must be an address as IP:PORT, with IPv6 in brackets")
