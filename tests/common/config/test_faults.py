"""A fault says where it is, and what is wrong."""

from __future__ import annotations

from pathlib import Path

from k8sproxy.common.config.faults import ConfigError, Fault, dotted

FILE = Path("k8sproxy.yaml")


def test_a_fault_names_its_place_as_far_as_it_has_one() -> None:
    assert str(Fault(FILE, 3, 5, "listen[0].tls", "is missing")) == "k8sproxy.yaml:3:5: listen[0].tls: is missing"
    assert str(Fault(FILE, 1, 1, "", "is empty")) == "k8sproxy.yaml:1:1: is empty"
    assert str(Fault(FILE, 0, 0, "", "cannot be read")) == "k8sproxy.yaml: cannot be read"


def test_an_error_says_every_fault_on_a_line_of_its_own() -> None:
    faults = [Fault(FILE, 1, 1, "a", "is missing"), Fault(FILE, 2, 1, "b", "is missing")]
    error = ConfigError(faults)
    assert error.faults == tuple(faults)
    assert str(error) == "k8sproxy.yaml:1:1: a: is missing\nk8sproxy.yaml:2:1: b: is missing"


def test_keys_are_spelt_with_dots_and_numbers() -> None:
    assert dotted(()) == ""
    assert dotted(("listen", 0, "tls", "cert")) == "listen[0].tls.cert"
