"""What the sections of both configurations are made of."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import ValidationError

from k8sproxy.common.config.sections import DOMAIN, FilePath, FolderPath, Network, Section, Who, matching


class Sample(Section):
    file: FilePath = Path("default")
    folder: FolderPath | None = None
    who: Who = "alice"
    networks: tuple[Network, ...] = ()
    short_word: Annotated[str, matching(re.compile(r"[a-z]+\Z"), "a word")] = "x"
    domain: Annotated[str, matching(DOMAIN, "a domain name")] = "a.example"


def read(**values: object) -> Sample:
    return Sample.model_validate(values, context={"base": Path("/etc/x")})


def refused(**values: object) -> str:
    with pytest.raises(ValidationError) as caught:
        read(**values)
    return "; ".join(details["msg"].removeprefix("Value error, ") for details in caught.value.errors())


def test_sections_are_frozen_and_know_their_keys() -> None:
    assert read(shortWord="y") == Sample(short_word="y")
    assert read(shortWord=None, file=None) == Sample()  # a key with nothing after it
    assert "Extra inputs" in refused(wrd=None)
    assert "valid dictionary" in refused_value(5)
    with pytest.raises(ValidationError, match="frozen"):
        read().file = Path("other")


def refused_value(value: object) -> str:
    with pytest.raises(ValidationError) as caught:
        Sample.model_validate(value)
    return str(caught.value)


def test_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert read(file="a/b", folder="/c") == Sample(file=Path("/etc/x/a/b"), folder=Path("/c"))
    assert read(file="~/b").file == Path("/home/me/b")
    assert Sample.model_validate({"file": "a"}).file == Path("a")
    for bad in ("", "a\0b", 5):
        assert refused(file=bad) == "must be the path of a file" and refused(folder=bad).endswith("of a folder")
    assert "home is not known" in refused(file="~nobody-has-this-name/x")


def test_texts() -> None:
    for bad in ("", "A", 5, "a" * 321):
        assert refused(shortWord=bad) == "must be a word"
    assert refused(domain="Example") == "must be a domain name"
    assert "must be a tag" in refused(who="tag:")


def test_networks() -> None:
    one = ipaddress.ip_network("10.0.0.0/8")
    assert read(networks=["10.0.0.0/8", "::1", one]).networks == (one, ipaddress.ip_network("::1"), one)
    for bad in ("10.0.0.1/8", "here", 5):
        assert "must be an address or a network" in refused(networks=[bad])
