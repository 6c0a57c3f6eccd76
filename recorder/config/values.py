"""Values that only the recorder's configuration has: URLs of object stores and of indexes, and how long to keep.

A URL is checked as far as every store of its kind agrees, so that a misspelt bucket shows in `recorder check` and not
at the first session. Messages never repeat a value: a URL of an index may hold a password.
"""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BeforeValidator, ValidationInfo

from k8sproxy.common.config.sections import path_of
from k8sproxy.common.config.units import parse_duration

_SCHEMES = ("s3", "s3a", "gs", "az", "adl", "azure", "abfs", "abfss", "memory", "http", "https")
# What each kind of store takes for a name at the most, old ones included: S3 had capitals and underscores once. The
# rule, and what to tell whoever breaks it.
_S3_NAME = (
    re.compile(r"(?!\d+\.\d+\.\d+\.\d+\Z)(?!.*\.\.)[A-Za-z0-9._-]{3,255}"),
    "bucket: 3 or more letters, digits, dots, dashes and underscores, not two dots in a row, not an IP address",
)
_AZURE_NAME = (
    re.compile(r"\$(?:root|web|logs)|(?!.*--)[a-z0-9](?:[a-z0-9-]{1,61}[a-z0-9])"),
    "container: 3 to 63 lower-case letters, digits and single dashes between them",
)
_BUCKETS = {
    "s3": _S3_NAME,
    "s3a": _S3_NAME,
    "gs": (
        re.compile(r"(?!\d+\.\d+\.\d+\.\d+\Z)(?!.*\.\.)[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]"),
        "bucket: 3 or more lower-case letters, digits, dots, dashes and underscores, a letter or digit at both ends",
    ),
    "az": _AZURE_NAME,
    "azure": _AZURE_NAME,
}

_file = path_of("file")


def _url(value: object) -> str:
    scheme, colon, rest = value.partition("://") if isinstance(value, str) else ("", "", "")
    if not colon or scheme not in _SCHEMES or (not rest and scheme != "memory"):
        raise ValueError('must be the URL of an object store, such as "s3://bucket/prefix", "gs://.." or "az://.."')
    if "@" in rest.partition("/")[0] and not scheme.startswith("abfs"):
        raise ValueError("must hold no credentials")
    rule = _BUCKETS.get(scheme)
    if rule is not None and not rule[0].fullmatch(rest.partition("/")[0]):
        raise ValueError(f"{scheme}:// is followed by the name of a {rule[1]}")
    return str(value)


def _index_url(value: object, info: ValidationInfo) -> str:
    scheme, _, rest = value.partition(":") if isinstance(value, str) else ("", "", "")
    if scheme == "sqlite" and rest and "\0" not in rest:
        return f"sqlite:{_file(rest, info)}"
    try:
        if scheme not in ("postgresql", "postgres") or not rest.startswith("//"):
            raise ValueError
        urlsplit(str(value))
    except ValueError:  # its own message may repeat a part of the password
        raise ValueError(
            'must be "sqlite:PATH" or "postgresql://USER@HOST/DATABASE" (in a password, / ? # @ [ and ] are written as '
            "% and two hex digits)"
        ) from None
    return str(value)


def _keep(value: object) -> float | None:
    """Seconds; None is for ever."""
    if value is None or value == "forever":
        return None
    seconds = parse_duration(value)
    if not 3600 <= seconds <= 36500 * 86400:
        raise ValueError('must be from "1h" to "36500d", or "forever"')
    return seconds


StoreURL = Annotated[str, BeforeValidator(_url)]
IndexURL = Annotated[str, BeforeValidator(_index_url)]
Keep = Annotated[float | None, BeforeValidator(_keep)]
