"""The request target: each refusal is a spelling that somebody else would have read as another path."""

from __future__ import annotations

import pytest

from k8sproxy.errors import ProtocolError
from k8sproxy.policy.target import MAX_PATH, MAX_TARGET, split_target

POD = "/api/v1/namespaces/d/pods/web"


@pytest.mark.parametrize(
    ("target", "path", "query", "plain"),
    [
        ("/", "/", "", True),
        ("/version", "/version", "", True),
        ("/version/", "/version/", "", True),
        ("/version?", "/version", "", True),
        ("/version?a=1?b", "/version", "a=1?b", True),
        ("/openapi/v3/apis/apps/v1?hash=0A%2F", "/openapi/v3/apis/apps/v1", "hash=0A%2F", True),
        ("/.well-known/openid-configuration", "/.well-known/openid-configuration", "", False),
        ("/x/...", "/x/...", "", False),
        (
            "/apis/rbac.authorization.k8s.io/v1/clusterroles/system:node",
            "/apis/rbac.authorization.k8s.io/v1/clusterroles/system:node",
            "",
            True,
        ),
        ("/x/system%3anode%20a", "/x/system:node a", "", False),
        ("/x/%C3%A9", "/x/é", "", False),
        (f"{POD}?q=%zz{{}}|\"<>^`'", POD, "q=%zz{}|\"<>^`'", True),
        (f"{POD}?q=[\\]", POD, "q=[\\]", True),
    ],
)
def test_canonical_targets_are_decoded(target: str, path: str, query: str, plain: bool) -> None:
    assert split_target(target) == (path, query, plain)


@pytest.mark.parametrize("resource", ["namespaces/d/pods/web", "namespaces/d/services/https:web:443", "nodes/n1:10250"])
@pytest.mark.parametrize(
    ("behind", "decoded", "plain"),
    [
        ("", "", True),
        ("/", "/", True),
        ("/a/b", "/a/b", True),
        ("//a", "//a", False),
        ("/a/../b", "/a/../b", False),
        ("/a%2Fb%2e", "/a/b.", False),
        ("/%65xec", "/exec", False),
        ('/\\x"{}|', '/\\x"{}|', False),
        ("/%FF", "/\N{REPLACEMENT CHARACTER}", False),
    ],
)
def test_behind_a_proxy_subresource_the_application_spells_as_it_likes(
    resource: str, behind: str, decoded: str, plain: bool
) -> None:
    head = f"/api/v1/{resource}/proxy"
    assert split_target(head + behind + "?a=b") == (head + decoded, "a=b", plain)


@pytest.mark.parametrize(
    "behind",
    [
        *(
            "/%00",
            "/%0a",
            "/%7F",
            "/%",
            "/%4",
            "/%zz",
            "/..",
            "/../exec",
            "/a/../../exec",
            "/%2e%2e/exec",
            "/..%2fexec",
        ),
        *("/./../exec", "//../exec", "/\x00", "/\n", "/a#b", "/ ", "/é", "/\x7f"),
    ],
)
def test_what_no_application_can_mean_is_refused(behind: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        split_target(POD + "/proxy" + behind)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "target",
    [
        *("", "*", "version", "https://host/version", "?a", "//", "//version", "/a//b", "/..", "/a/../b", "/a/."),
        *(
            "/a/./b",
            "/%2e%2e/a",
            "/a%2Fb",
            "/a%2fb",
            "/%65xec",
            "/a%7Eb",
            "/a%2Db",
            "/a\\b",
            "/a%5Cb",
            "/a%25b",
            "/%00",
        ),
        *("/%0D%0A", "/%7f", "/\x00", "/a b", "/a\tb", "/a\r\n", "/a#b", "/a?b#c", "/a?b c", "/a?\x01", "/é", "/a?é"),
        *("/%", "/%1", "/%g1", "/%FF", "/%C2%85", '/a"', "/a<b", "/a[b]", "/a^b", "/a`b", "/a{b}", "/a|b"),
        # The word proxy in other places opens nothing.
        *("/api/v1/namespaces/d/pods/web/proxyx//a", "/api/v1/namespaces/d/pods/proxy//a", "/apis/v1/nodes/n/proxy//a"),
        *("/api/v1/nodes//proxy//a", "/api/v1/nodes/%2e%2e/proxy/a", "/x/api/v1/nodes/n/proxy//a"),
    ],
)
def test_anything_with_two_readings_is_refused(target: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        split_target(target)
    assert caught.value.status == 400


def test_lengths() -> None:
    longest = "/" + "a" * (MAX_PATH - 1)
    assert split_target(longest)[0] == longest
    query = "c" * (MAX_TARGET - 3)
    assert split_target("/a?" + query) == ("/a", query, True)
    for overlong in (longest + "a", longest + "%3A", "/a?c" + query, "a" * (MAX_TARGET + 1)):
        with pytest.raises(ProtocolError) as caught:
            split_target(overlong)
        assert caught.value.status == 414
