"""What the sections of both configurations are made of: their base class, and the kinds of values that both have.

Keys are camelCase in the file and snake_case in Python; everything is frozen. Each kind of value is a type for a field
of a model (`FilePath`), or a function that gives a validator for one (`matching`).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo, model_validator
from pydantic.alias_generators import to_camel

from k8sproxy.common.tailnet.peer import read_name

# Characters of a value that has to match a pattern.
_MOST = 320

DOMAIN = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?\Z")


class Section(BaseModel):
    """What all sections share: frozen, unknown keys refused, a key with nothing after it as good as absent.

    Python may use the snake_case names; a file may not (`loading.py` turns them off).
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, validate_by_name=True, arbitrary_types_allowed=True
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_empty(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        known = {field.alias for field in cls.model_fields.values()}
        return {name: item for name, item in value.items() if item is not None or name not in known}


def path_of(kind: str) -> Callable[[object, ValidationInfo], Path]:
    """A validator: a path. A relative one is taken from `base` in the validation's context, the directory of the file.

    kind: what the path is of, for the reader.
    """

    def check(value: object, info: ValidationInfo) -> Path:
        if isinstance(value, Path):
            return value
        if not isinstance(value, str) or not value or "\0" in value:
            raise ValueError(f"must be the path of a {kind}")
        base = (info.context or {}).get("base")
        try:
            path = Path(value).expanduser()
        except RuntimeError:
            raise ValueError("begins with ~ for a user whose home is not known") from None
        return Path(base) / path if base is not None else path

    return check


def matching(pattern: re.Pattern[str], wanted: str) -> BeforeValidator:
    """A validator: a text that the pattern matches. wanted: what it must be, for the reader."""

    def check(value: object) -> str:
        if not isinstance(value, str) or len(value) > _MOST or not pattern.match(value):
            raise ValueError(f"must be {wanted}")
        return value

    return BeforeValidator(check)


def _network(value: object) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    if isinstance(value, ipaddress.IPv4Network | ipaddress.IPv6Network):
        return value
    try:
        if not isinstance(value, str):
            raise ValueError
        return ipaddress.ip_network(value)
    except ValueError:
        raise ValueError('must be an address or a network, such as "127.0.0.1" or "10.0.0.0/8"') from None


FilePath = Annotated[Path, BeforeValidator(path_of("file"))]
FolderPath = Annotated[Path, BeforeValidator(path_of("folder"))]
Who = Annotated[str, BeforeValidator(read_name)]
Network = Annotated[ipaddress.IPv4Network | ipaddress.IPv6Network, BeforeValidator(_network)]
