"""The example is documentation: it loads, and it says what the models say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import k8sproxy
from k8sproxy.common.config.sections import Section
from k8sproxy.config import Admin, Config, Events, Limits, Log, Recording, Shutdown, Tailnet, load, parse

EXAMPLE = Path(k8sproxy.__file__).parent / "example.yaml"
TEXT = EXAMPLE.read_text()
ENVIRONMENT = {"K8SPROXY_KUBECONFIG": "/x/kubeconfig"}


def test_it_loads_and_holds_the_defaults() -> None:
    config = load(EXAMPLE, environment=ENVIRONMENT, files=False)
    assert config.tailnet == Tailnet()
    assert config.admin == Admin()
    assert config.log == Log()
    assert config.limits == Limits()
    assert config.recording == Recording()
    assert config.events == Events()
    assert config.shutdown == Shutdown()
    assert config.clusters[0].kubeconfig == Path("/x/kubeconfig")


def test_its_commented_alternatives_load() -> None:
    text, count = re.subn(r"^  # - \{", "  - {", TEXT, flags=re.MULTILINE)
    config = parse(text.encode(), EXAMPLE, environment=ENVIRONMENT, files=False)
    assert count == 5
    assert {listen.tls.source for listen in config.listen} == {"tailnet", "files", "generated", "none"}
    assert config.clusters[1].in_cluster


@pytest.mark.parametrize("section", ["tailnet", "admin", "log", "limits", "recording", "events", "shutdown"])
def test_every_key_is_in_it(section: str) -> None:
    model = Config.model_fields[section].annotation
    assert isinstance(model, type)
    assert issubclass(model, Section)
    assert list(yaml.safe_load(TEXT)[section]) == [field.alias for field in model.model_fields.values()]


@pytest.mark.parametrize("model", [Tailnet, Limits, Recording, Events, Shutdown])
def test_it_says_what_the_models_say(model: type[Section]) -> None:
    for field in model.model_fields.values():
        comment = re.search(rf"((?:^ +# .*\n)+)^ +{field.alias}:", TEXT, re.MULTILINE)
        assert comment is not None, field.alias
        assert " ".join(re.findall(r"# (.*)", comment[1])) == field.description


def test_each_limit_says_its_default_and_why() -> None:
    written = yaml.safe_load(TEXT)["limits"]
    for field in Limits.model_fields.values():
        description = field.description or ""
        assert f"(default {written[field.alias]}" in description
        assert len(description.split("(default", 1)[1].split(". ", 1)[-1]) > 20, field.alias
