"""Names that secrets go by, and texts that hold one: the words that redaction goes by.

    hides("dbPassword")              what has this name is a secret
    is_secret("curl -u me:x h")      a text that holds one, whatever its name
    is_telling_command("mysql -px")  a command line, joined by blanks, that does

All of it errs on the side of taking out too much. Each pattern takes time that grows with the text alone.
"""

from __future__ import annotations

import re
from functools import lru_cache

# Resources and kinds that hold secrets by their names: Secret, TokenReview, and custom ones (SealedSecret, VaultToken).
_SENSITIVE = re.compile(r"secret|token|credential|password|kubeconfig", re.IGNORECASE)
# Members, parameters, environment variables and flags that do; the words of the first line stand anywhere in them.
_NAMES = re.compile(
    r"token|secret|passw|passphrase|passcode|credential|kubeconfig|authorization|bearer|cookie|jwt|signature|dockerc"
    # Short ones end a name (pw, dbPwd, DB_PASS_2); those that also end ordinary words begin a word too (proxyAuth).
    r"|(?:pw|pwd|pass|psw|pswd|creds?|psk|otp)[\W_0-9]*+$"
    r"|(?:^|[\W_]|(?-i:(?<=[a-z0-9])(?=[A-Z])))(?:auth|sig)[\W_0-9]*+$"
    r"|(?:api|access|private|encryption|account|client|shared|ssh|tls|ssl|signing|master|hmac|license|storage|deploy"
    r"|consumer)[_.-]?key(?:[_.-]?data)?[\W_0-9]*+$|session[_.-]?id|kennwort|contrase"
    r"|(?:dsn|conn(?:ection)?[_.-]?str(?:ing)?|hook[_.-]?url)[\W_0-9]*+$",
    re.IGNORECASE,
)
# Endings of names that only point to a secret or say how long one lasts: secretName, tokenExpirationSeconds.
POINTERS = re.compile(
    r"(?:names?|namespace|refs?|paths?|file|type|kind|version|seconds|ttl|selector|enabled|audiences?)$", re.IGNORECASE
)
# Text that holds a secret under whatever name: words in lower case; base64 of PEM, but for certificates and requests
# for one, and of what begins like JSON (a JWT), both once more encoded too; "password: x", and a Secret's manifest.
TEXT_WORDS = ("private key", "client-key-data", "bearer ", "basic ", "last-applied-configuration")
_CODED = re.compile(r"eyJ[A-Za-z0-9+/_-]{8}|ZXlK[A-Za-z0-9+/]{12}|LS0tLS1CRUdJTi(?!BDRVJU)")
_LABELLED = re.compile(
    r"(?:token|password|passwd|secret|stringdata)[\\\"']*\s*[:=]|kind[\\\"']*\s*:\s*[\\\"']*secret\b"
)
# Tokens whose issuers begin them with a mark of their own, passwords' hashes as crypt(3) and LDAP write them, and lines
# of a .pgpass. MARKS, in lower case: one of these is in each.
_MARKED = re.compile(
    r"(?<![A-Za-z0-9])(?:gh[oprsu]_|github_pat_|glpat-|xox[a-z]-|[rs]k_live_|AIza|hv[bs]\.|npm_|dop_v1_|pypi-)[\w-]{16}"
    r"|\$(?:1|2[abxy]|5|6|7|y|gy|apr1|argon2id?|scrypt)\$[^\s$]|\{S?(?:SHA(?:256|512)?|MD5|CRYPT)\}\S"
    r"|:5432:[^\s:]++:[^\s:]++:\S"
)
MARKS = (
    *(
        "gho_",
        "ghp_",
        "ghr_",
        "ghs_",
        "ghu_",
        "github_pat_",
        "glpat-",
        "xox",
        "k_live_",
        "aiza",
        "hvb.",
        "hvs.",
        "npm_",
    ),
    *(
        "dop_v1_",
        "pypi-",
        "$1$",
        "$2a$",
        "$2b$",
        "$2x$",
        "$2y$",
        "$5$",
        "$6$",
        "$7$",
        "$y$",
        "$gy$",
        "$apr1$",
        "$argon2",
    ),
    *("$scrypt$", "sha}", "sha256}", "sha512}", "md5}", "crypt}", ":5432:"),
)
# What a line of a configuration file, a flag or an assignment calls its value, whatever the language.
_LABEL = re.compile(r"(?<![A-Za-z0-9_.-])([A-Za-z0-9_.-]++)[\\\"']*+\s*+[:=]")
# A flag with its value behind a blank (mysql --password x), and an element of XML, within a text.
_FLAG_AND_VALUE = re.compile(r"(?<![^\s\"'])(--?[A-Za-z][A-Za-z0-9_.-]*+)[ \t]++[^\s-]")
_ELEMENT = re.compile(r"<([A-Za-z][A-Za-z0-9_.:-]*+)>[^<\s]")
# Command lines, joined by blanks: a user with a password (curl -u me:x, smbclient -U me%x; not uid:gid), and flags of
# one letter that take a password in one program and mean something else in others.
_USER_AND_PASSWORD = re.compile(
    r"(?<![^\s\"'])(?:-[A-Za-z]{0,8}[uU]|--?(?:proxy-)?user(?:pwd)?)(?:[ \t=]++|(?<=[ \t\"']-[uU])|(?<=^-[uU]))[\"']?"
    r"(?!\d++:\d++(?:[\s\"']|\Z))[^\s:%\"'=/-][^\s:%\"']*+[:%][^\s\"'/]"
)
_PROGRAM_AND_FLAG = re.compile(
    r"\b(?:(?:sshpass|(?:mysql|mariadb|mongo)\w*+|login)\b[^\n;|&]{0,256}?[ \t]-p[ \t=]*+[^\s-]"
    r"|redis-cli\b[^\n;|&]{0,256}?[ \t]-a[ \t]*+\S|ldap[a-z]++\b[^\n;|&]{0,256}?[ \t]-[wW][ \t]*+\S"
    r"|htpasswd\b[^\n;|&]{0,256}?[ \t]-[A-Za-z]*b)"
)
# Statements of SQL, entries of a .netrc, and lines of a file whose values stand behind a blank (requirepass x).
_STATEMENT = re.compile(
    r"\bidentified\s++(?:by\b|with\s++\S++\s++(?:by|as)\b)|\bset\s++password\b"
    r"|\bpassword(?:\s++|\s*+\(\s*+)[ne]?[\"'][^\s\"']|\b(?:login|account|user|machine)\s++\S{1,256}+\s++password\s++\S",
    re.IGNORECASE,
)
_LINE = re.compile(
    r"^[ \t]*+([A-Za-z][\w.-]*+)[ \t]++(?!(?:on|off|true|false|yes|no|none)\b)[^\s=:#]\S*+[ \t]*+$", re.MULTILINE
)
# Text: a URL with a password in it. A body that may hold one has both of these (the slashes may be escaped).
URL = re.compile(r"://[^/\s:@?#\"']*+:[^/\s@?#\"']++@")
URL_WORDS = (b"@", b":/", b":\\/")
_FLAG = re.compile(r"--?[A-Za-z0-9_.-]+")


def hides(name: str) -> bool:
    """Whether what has this name is a secret."""
    # Long ones come once, and would make the cache as large as bodies.
    return _short_hides(name) if len(name) <= 64 else _short_hides.__wrapped__(name)


@lru_cache(4096)
def _short_hides(name: str) -> bool:
    return _NAMES.search(name) is not None and POINTERS.search(name) is None


def is_telling_flag(word: str) -> bool:
    """Whether what stands behind this word of a command is a secret."""
    return word[:1] == "-" and _FLAG.fullmatch(word) is not None and hides(word)


def is_sensitive(word: str) -> bool:
    """Whether what has this resource's or kind's name is taken for a secret as a whole."""
    return _short_is_sensitive(word) if len(word) <= 64 else _short_is_sensitive.__wrapped__(word)


@lru_cache(1024)
def _short_is_sensitive(word: str) -> bool:
    return _SENSITIVE.search(word) is not None


def is_secret(text: str) -> bool:
    """Whether a text holds a secret, whatever its name."""
    if len(text) < 7:  # shorter than a label, a colon and something
        return False
    # One character of those that each word has, of those that are rare in names.
    if (" " in text or "-" in text) and any(map(text.lower().__contains__, TEXT_WORDS)):
        return True
    if (":" in text or "=" in text) and (
        _LABELLED.search(text.lower()) is not None or any(hides(label[1]) for label in _LABEL.finditer(text))
    ):
        return True
    if "-" in text and (any(hides(flag[1]) for flag in _FLAG_AND_VALUE.finditer(text)) or is_telling_command(text)):
        return True
    if (" " in text or "\n" in text) and (
        _STATEMENT.search(text) is not None or any(hides(line[1]) for line in _LINE.finditer(text))
    ):
        return True
    if "</" in text and any(hides(element[1]) for element in _ELEMENT.finditer(text)):
        return True
    return ("@" in text and URL.search(text) is not None) or is_coded(text) or _MARKED.search(text) is not None


def is_telling_command(line: str) -> bool:
    """Whether a command line has a password in it that no name of a flag gives away."""
    return "-" in line and (_USER_AND_PASSWORD.search(line) is not None or _PROGRAM_AND_FLAG.search(line) is not None)


def is_coded(text: str) -> bool:
    return ("eyJ" in text or "ZXlK" in text or "LS0t" in text) and _CODED.search(text) is not None
