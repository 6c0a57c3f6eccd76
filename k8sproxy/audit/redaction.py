"""What of a request may be told to a recorder: bodies and queries without the secrets in them.

By default, always, and in doubt too much. A recorder is read by more people than the cluster's secrets are, and keeps
what it has. Header values never get this far, but for User-Agent.

    sensitive resources     secrets, token reviews and whatever has such a word in its resource's name: only what is
                            known to be harmless stays (kind, names, labels, the op and path of a JSON patch, the names
                            of keys); every other value becomes REDACTED. So it holds for an object, a list, a merge,
                            strategic or JSON patch and server-side apply alike, known fields or not.
    token requests          serviceaccounts/NAME/token: parsed always, and `token` in it taken out.
    proxied requests        the body belongs to an application, and may be a login form: dropped.
    all other resources     kept as sent, to the byte, unless it holds one of the words that secrets have near them.
                            Then it is parsed, and taken out are: Secrets embedded in it, values under such names (also
                            {"name": "DB_PASSWORD", "value": ..}), text with a private key, a JWT or a kubeconfig in
                            it, and the annotation kubectl.kubernetes.io/last-applied-configuration, which holds the
                            object once more as it was before anybody looked. In a JSON patch the name may stand in
                            another operation than the value ({"op": "test", "path": "/../env/3/name"}): where any
                            operation has such a name, all values that could be its own are taken out.

A body that was cut, and has none of those words so far, may have been going to say one: a Secret's kind stands behind
its data. So it ends in front of what is unfinished and may turn out to be a secret's; a JSON patch as a whole is, since
its operations tell of each other.

What has to be parsed and can't be is dropped whole: a body that was cut, YAML (kubectl's server-side apply sends JSON
under that type, which is read), protobuf and CBOR, an object with a member twice, of which readers see different ones.
Protobuf of other resources has no names of fields in it, but those of a map's keys and of environment variables, which
stand in front of their values: it is dropped where one of these hides something, or where a stronger word stands in it.
CBOR has all names in it, and is dropped for any word.
"""

from __future__ import annotations

import codecs
import json
import re

from k8sproxy.audit.secretwords import (
    MARKS,
    POINTERS,
    TEXT_WORDS,
    URL,
    URL_WORDS,
    hides,
    is_coded,
    is_secret,
    is_sensitive,
    is_telling_command,
    is_telling_flag,
)
from k8sproxy.common.formats.strictjson import no_constant
from k8sproxy.request.query import pairs
from k8sproxy.request.requestinfo import RequestInfo

REDACTED = "REDACTED"

_SEPARATORS = re.compile("[;=]")
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_LAST_APPLIED_POINTER = _LAST_APPLIED.replace("/", "~1")

# For what is not parsed yet, in lower case: without any of these there is nothing to look for. They are looked for one
# by one, which is ten times as fast as a pattern with all of them. The last is an escape, which may spell any other.
_ANY_WORD = (
    *(b"secret", b"token", b"pass", b"pw", b"psw", b"cred", b"psk", b"otp", b"kubeconfig", b"auth", b"bearer "),
    *(b"basic ", b"cookie", b"jwt", b"sig", b"dockerc", b"key", b"session", b"stringdata", b"kennwort", b"contrase"),
    *(b"last-applied-configuration", b"dsn", b"hookurl", b"hook_url", b"hook-url", b"hook.url", b"connstr"),
    *(b"connectionstr", *(b"conn%bstr" % end for end in (b"_", b"-", b".", b"ection_", b"ection-", b"ection."))),
    *(b"-u", b"curl", b"mongo", b"mysql", b"mariadb", b"login", b"redis-cli", b"ldap", b"identified"),
    *map(str.encode, MARKS),
    *(b"eyj", b"zxlk", b"ls0tls1crudjti", b"\\u00"),
)
# Any of these in a body that is of an ordinary resource and in a format that is not read here: it is dropped.
_STRONG_WORD = (
    *(
        b"passw",
        b"passphrase",
        b"pwd",
        b"_pw",
        b"-pw",
        b"stringdata",
        b"api_key",
        b"apikey",
        b"kind: secret",
        b"secret\x12",
    ),
    *(b"_token", b"-token", b"_secret", b"-secret", b"_key", b"-key"),
    *map(str.encode, TEXT_WORDS),
)
# What an unfinished JSON text is made of; a string at its end may have no end.
_JSON_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[{}\[\]]', re.DOTALL)
# Of an object like {"name": "DB_PASSWORD", "value": ..} or {"key": .., "values": ..}: the members that may say what the
# others are.
_OWNERS = frozenset(("name", "path", "key", "header", "field", "id", "parameter", "property", "variable"))
_VALUES = frozenset(("value", "values", "val", "default", "defaultValue", "content"))
# Of an object with a telling name: members that don't hold what its name says. With a key stands a name or a path.
_WHERE = frozenset(("valueFrom", "items", "defaultMode", "mode", "optional", "driver", "description", "metadata"))
# A member that says nothing by itself, and may be a Secret's or have its name behind it; and the same in YAML.
_UNTOLD = (b'"data"', *(b'"%b"' % name.encode() for name in sorted(_VALUES)))
_YAML_UNTOLD = re.compile(rb"^[ \t-]+[\"']?(?:data|%b)[\"']?[ \t]*:" % "|".join(sorted(_VALUES)).encode(), re.MULTILINE)
# runtime.Unknown's magic number (apimachinery, serializer/protobuf) and CBOR's self-described tag (RFC 8949, 3.4.6).
_PROTOBUF = b"k8s\x00"
_CBOR = b"\xd9\xd9\xf7"
# Field 1 of a message, a text of less than 128 bytes: the key of a map's entry, the name of an EnvVar. Field 2 is next.
_FIRST_FIELD = re.compile(rb"\n(?=([\x01-\x7f])([ -~]+))")

# Members of an object (or patch, or DeleteOptions) of a sensitive resource that stay, where they are plain values.
_HARMLESS = frozenset(
    (
        *("kind", "apiVersion", "type", "immutable", "op", "path", "from", "name", "namespace"),
        *("gracePeriodSeconds", "propagationPolicy", "orphanDependents"),
    )
)
_HARMLESS_METADATA = frozenset(("name", "namespace", "generateName", "uid", "resourceVersion"))


def redact_body(info: RequestInfo, body: bytes, *, truncated: bool) -> tuple[bytes, bool]:
    """What of a request's body may be told, and whether anything was taken out of it.

    body: without its framing. truncated: it goes on. The content's type is not asked for: what is JSON is read as such.
    """
    if not body:
        return b"", False
    if info.subresource == "proxy" or info.verb == "proxy":
        return b"", True
    sensitive = is_sensitive(info.resource)
    doubtful = sensitive or info.subresource == "token"
    lowered = body.lower()
    if body.startswith((_PROTOBUF, _CBOR)):
        words = _ANY_WORD if body.startswith(_CBOR) else _STRONG_WORD
        text = body.decode("latin-1")
        drop = doubtful or any(word in lowered for word in words) or is_coded(text) or URL.search(text) is not None
        return (b"", True) if drop or _has_hidden_field(body) else (body, False)
    if not doubtful and not _may_hide(lowered) and _is_text(body):
        told = _finished(body) if truncated else body
        return told, len(told) < len(body)
    if truncated:
        return b"", True
    try:
        tree = json.loads(body.decode(), object_pairs_hook=_object, parse_constant=no_constant)
        kept = _only_harmless(tree) if sensitive else _without_secrets(tree, "")
        if not sensitive and kept == tree:
            return body, False
        return json.dumps(kept, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace"), True
    except (ValueError, RecursionError):
        return b"", True


def redact_query(query: str) -> tuple[str, dict[str, list[str]], bool]:
    """A raw query as it may be told, its values by name as Go's url.Query reads them, and whether it is redacted."""
    told: list[str] = []
    values: dict[str, list[str]] = {}
    redacted = False
    commands = _telling_commands(query) if "-" in query else frozenset()
    begun: set[str] = set()  # those of which the program has been seen
    flagged: set[str] = set()  # names whose last value is a flag like --password, whose value the next one is
    for raw_name, equals, raw_value, name, value, read in pairs(query):
        behind_flag = name in flagged
        flagged.discard(name)
        if is_telling_flag(value):
            flagged.add(name)
        # A value with a ";" or "=" in it may be more pairs to another reader: its names count too. env is of exec
        # (KEP-6035): variables, which are secrets more often than not.
        if value and (
            behind_flag
            or name in begun
            or name == "env"
            or hides(name)
            or is_secret(value)
            or any(map(hides, _SEPARATORS.split(value)[:-1]))
        ):
            redacted = True
            raw_value = value = REDACTED
        if name in commands:
            begun.add(name)
        told.append(raw_name + equals + raw_value)
        if read:
            values.setdefault(name, []).append(value)
    return "&".join(told), values, redacted


def _telling_commands(query: str) -> frozenset[str]:
    """The names whose values are the words of a command line with a password in it."""
    words: dict[str, list[str]] = {}
    for _, _, _, name, value, _ in pairs(query):
        words.setdefault(name, []).append(value)
    return frozenset(name for name, line in words.items() if len(line) > 1 and is_telling_command(" ".join(line)))


def _may_hide(lowered: bytes) -> bool:
    """Whether a text, in lower case, has to be looked at closely."""
    at, slash, escaped = URL_WORDS
    return (at in lowered and (slash in lowered or escaped in lowered)) or any(word in lowered for word in _ANY_WORD)


def _finished(body: bytes) -> bytes:
    """A text that was cut, up to the first object that is unfinished and has a member whose meaning would have stood
    behind it. What the outermost object is, the resource says."""
    if body.lstrip()[:1] not in (b"{", b"["):
        return b"" if _YAML_UNTOLD.search(body) is not None else body
    opened: list[int] = []  # where each object and list begins that is unfinished
    untold: set[int] = set()
    for token in _JSON_TOKEN.finditer(body):
        word = token[0]
        if word in b"{[":
            opened.append(token.start())
        elif word in b"}]":
            if opened:
                opened.pop()
        elif word in _UNTOLD and len(opened) > 1:
            untold.add(opened[-1])
        elif word == b'"op"' and len(opened) > 1:
            untold.add(opened[-2])
    return next((body[:start] for start in opened if start in untold), body)


def _has_hidden_field(body: bytes) -> bool:
    """Whether a name that hides something stands in front of a value, in protobuf."""
    for field in _FIRST_FIELD.finditer(body):
        name, size = field[2], field[1][0]
        if len(name) >= size and body[field.start(2) + size : field.start(2) + size + 1] == b"\x12":
            name = name[:size]
            if hides(name.decode("ascii")):
                return True
    return False


def _is_text(body: bytes) -> bool:
    """Whether it is UTF-8, but for a character that is cut at its end."""
    try:
        codecs.utf_8_decode(body, "strict", False)
    except UnicodeDecodeError:
        return False
    return True


def _only_harmless(value: object) -> object:
    """An object of a sensitive resource, a list or a patch of such, without all that is not known to be harmless."""
    if isinstance(value, list):
        return [_only_harmless(item) for item in value]
    if not isinstance(value, dict):
        return _blank(value)
    told: dict[str, object] = {}
    for name, member in value.items():
        if name in _HARMLESS and not isinstance(member, (dict, list)):
            told[name] = member
        elif name == "metadata" and isinstance(member, dict):
            told[name] = {
                key: inner if key in _HARMLESS_METADATA and not isinstance(inner, (dict, list)) else _labels(key, inner)
                for key, inner in member.items()
            }
        elif name == "items" and isinstance(member, list):
            told[name] = _only_harmless(member)
        else:
            told[name] = _blank(member)
    return told


def _labels(name: str, value: object) -> object:
    return _without_secrets(value, name) if name == "labels" else _blank(value)


def _blank(value: object) -> object:
    """The shape of a value: names and lengths, and null, which is how a merge patch deletes."""
    if isinstance(value, dict):
        return {name: _blank(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_blank(member) for member in value]
    return None if value is None else REDACTED


def _without_secrets(value: object, name: str) -> object:
    """A value of an ordinary resource, which stands under `name`, without the secrets in it."""
    if isinstance(value, str):
        return REDACTED if value and (hides(name) or is_secret(value)) else value
    if isinstance(value, dict):
        kind = value.get("kind")
        if isinstance(kind, str) and kind != "TokenRequest" and is_sensitive(kind):
            return _only_harmless(value)
        # {"password": {"value": ..}} too; one that only points, {"secretKeyRef": ..}, has no value.
        hidden = not _VALUES.isdisjoint(value) and (hides(name) or _is_owned(value))
        below = name if hides(name) else ""
        return {
            key: _blank(member)
            if key == _LAST_APPLIED or key == "stringData" or (hidden and key in _VALUES)
            else _without_secrets(member, below if below and not _points(key, value) else key)
            for key, member in value.items()
        }
    if isinstance(value, list):
        if any(isinstance(item, dict) and "op" in item for item in value):
            value = _patch_without_siblings(value)
        items: list[object] = []
        words = [item for item in value if isinstance(item, str)]
        command = len(words) > 1 and is_telling_command(" ".join(words))
        flagged = False  # the item before is a flag like --password, whose value this one is
        for item in value:
            secret = isinstance(item, str) and (flagged or (command and items != []))
            items.append(REDACTED if secret else _without_secrets(item, name))
            flagged = isinstance(item, str) and is_telling_flag(item)
        return items
    return REDACTED if isinstance(value, (int, float)) and not isinstance(value, bool) and hides(name) else value


def _points(name: str, value: dict[str, object]) -> bool:
    """Whether a member of an object with a telling name, {"secret": {..}}, only says where the secret is, or what."""
    return (
        name in _WHERE
        or POINTERS.search(name) is not None
        or (name == "key" and not value.keys().isdisjoint(("name", "path")))
    )


def _is_owned(value: dict[str, object]) -> bool:
    """Whether an object says that its value is a secret: {"name": .., "value": ..} (environment variables, headers),
    {"path": .., "value": ..} (JSON patch)."""
    for name, label in value.items():
        if name in _OWNERS and isinstance(label, str) and (hides(label) or _LAST_APPLIED_POINTER in label):
            return True
    path = value.get("path")
    parts = path.split("/") if isinstance(path, str) and "op" in value else [""]
    return any(map(hides, parts[:-1])) and not _points(parts[-1], {})


def _patch_without_siblings(operations: list[object]) -> list[object]:
    """A JSON patch (RFC 6902) without the values of which another operation says that they are secrets: by a name, as
    {"op": "test", "path": "/../env/3/name", "value": "DB_PASSWORD"} does, or by a flag of the same command line.
    Positions move while a patch is applied, so it is not asked which element a name or a flag belongs to."""
    parts = [
        (str(operation.get("path")).split("/"), operation) for operation in operations if isinstance(operation, dict)
    ]
    named = any(_tells_a_secret(path[-1], operation.get("value")) for path, operation in parts)
    flagged = any(_holds_a_flag(operation.get("value")) for _, operation in parts)
    if not named and not flagged:
        return operations
    told: list[object] = [operation for operation in operations if not isinstance(operation, dict)]
    for path, operation in parts:
        value = operation.get("value")
        element = path[-1] == "-" or path[-1].isdigit()
        if named and (path[-1] in _VALUES or (element and path[-2:-1] and path[-2] in _VALUES)):
            value = _blank(value)
        elif named:
            value = _without_unowned(value)
        if flagged and element and isinstance(value, str) and not is_telling_flag(value):
            value = REDACTED
        told.append({**operation, "value": value} if "value" in operation else operation)
    return told


def _tells_a_secret(name: str, value: object) -> bool:
    """Whether a value, which stands under a name, says of anything that it is a secret."""
    if isinstance(value, str):
        return name in _OWNERS and hides(value)
    if isinstance(value, dict):
        return any(_tells_a_secret(key, member) for key, member in value.items())
    return isinstance(value, list) and any(_tells_a_secret(name, member) for member in value)


def _holds_a_flag(value: object) -> bool:
    if isinstance(value, str):
        return is_telling_flag(value) or value in ("-u", "-U", "--user", "--proxy-user")
    members = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(map(_holds_a_flag, members))


def _without_unowned(value: object) -> object:
    """A value without the values in it of which nothing beside them says what they are."""
    if isinstance(value, list):
        return [_without_unowned(member) for member in value]
    if not isinstance(value, dict):
        return value
    owned = not _OWNERS.isdisjoint(value)
    return {
        key: _blank(member) if key in _VALUES and not owned else _without_unowned(member)
        for key, member in value.items()
    }


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    told = dict(pairs)
    if len(told) != len(pairs):
        raise ValueError("an object with a member twice")
    return told
