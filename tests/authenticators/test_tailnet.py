"""The tailnet's authenticator: callers out of the answers of WhoIs, the same one as long as those are equal."""

from __future__ import annotations

import pytest

from k8sproxy.authenticators.evidence import Evidence
from k8sproxy.authenticators.tailnet import TailnetAuthenticator
from k8sproxy.common.errors import Refusal
from k8sproxy.common.tailnet.whois import WhoIs
from tests.dataplane.proxied import ANA, UNKNOWN, Daemon, peer


async def test_a_caller_is_the_same_while_the_answers_are_equal() -> None:
    daemon = Daemon()
    whois = WhoIs(daemon)
    authenticator = TailnetAuthenticator(whois)
    evidence = Evidence(whois.open("100.64.0.7", 1234))
    assert evidence.address == "100.64.0.7:0"
    assert authenticator.current(evidence, None) is None
    caller = await authenticator.ask(evidence, None)
    assert caller.user == "ana@example.com" and caller.peer == ANA
    assert authenticator.current(evidence, caller) is caller
    whois.invalidate()
    assert authenticator.current(evidence, caller) is None
    assert await authenticator.ask(evidence, caller) is caller
    daemon.answer = peer("ops")
    whois.invalidate()
    other = await authenticator.ask(evidence, caller)
    assert other is not caller and other.peer == peer("ops")
    assert authenticator.current(evidence, caller) == other
    await whois.aclose()


async def test_an_unknown_peer_is_refused() -> None:
    daemon = Daemon()
    daemon.answer = UNKNOWN
    whois = WhoIs(daemon)
    with pytest.raises(Refusal, match="no such peer"):
        await TailnetAuthenticator(whois).ask(Evidence(whois.open("100.64.0.7", 1)), None)
    await whois.aclose()
