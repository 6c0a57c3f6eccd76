"""The request target: each refusal is a spelling that somebody else would have read as another path."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k8sproxy.common.errors import ProtocolError
from k8sproxy.request.classify import SessionKind
from k8sproxy.request.requestinfo import request_info
from k8sproxy.request.target import MAX_PATH, MAX_TARGET, split_target

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


# A name stands for NAME; each path holds one or two.
NAMED = [
    *("/api/v1/namespaces/NAME", "/api/v1/nodes/NAME", "/api/v1/watch/nodes/NAME", "/api/v1/namespaces/NAME/status"),
    *("/apis/user.openshift.io/v1/users/NAME", "/apis/apps/v1/namespaces/NAME/deployments/NAME/scale"),
    *("/api/v1/namespaces/NAME/pods", f"{POD[:-3]}NAME", f"{POD[:-3]}NAME/exec", "/api/v1/nodes/NAME/proxy/metrics"),
    *("/api/v1/watch/namespaces/NAME/pods/NAME", "/apis/apps/v1/proxy/namespaces/NAME/deployments/NAME"),
]


@pytest.mark.parametrize("path", NAMED)
@pytest.mark.parametrize(
    ("written", "name"),
    [("%7E", "~"), ("%7e", "~"), ("web%2D0", "web-0"), ("w%65b", "web"), ("a%2Eb%5Fc", "a.b_c"), ("%65xec", "exec")],
)
def test_names_may_hold_escaped_characters_that_mean_themselves(path: str, written: str, name: str) -> None:
    """urllib3 writes users/~ as users/%7E, which was a 400."""
    assert split_target(path.replace("NAME", written)) == (path.replace("NAME", name), "", False)


@pytest.mark.parametrize("path", NAMED)
@pytest.mark.parametrize(
    "written", ["%2E", "%2e%2e", ".%2e", "a%2Fb", "a%5Cb", "a%25b", "%2565", "a%00", "a%7F", "a%", "a%zz", "a%FF"]
)
def test_no_name_is_a_dot_segment_or_holds_what_it_can_not(path: str, written: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        split_target(path.replace("NAME", written))
    assert caught.value.status == 400


@pytest.mark.parametrize("path", [*NAMED, "/version", "/api/v1", "/apis/apps/v1", "/api/v1/pods", "/healthz/etcd"])
def test_words_hold_no_escape_of_an_unreserved_character(path: str) -> None:
    for number, segment in enumerate(path.split("/")[1:], 1):
        if segment in ("NAME", "web", "d") or (number > 4 and "/proxy/" in path and path.split("/")[4] != "namespaces"):
            continue
        segments = path.replace("NAME", "n").split("/")
        for place in range(len(segment)):
            segments[number] = f"{segment[:place]}%{ord(segment[place]):02x}{segment[place + 1 :]}"
            if segment[place] in "/:":
                continue
            with pytest.raises(ProtocolError, match="percent-encoded"):
                split_target("/".join(segments))


@given(st.data())
def test_whatever_is_escaped_the_request_is_the_same_or_refused(data: st.DataObject) -> None:
    """Of unreserved characters; and never where a resource, a subresource or a verb is told by them."""
    path = data.draw(st.sampled_from(NAMED)).replace(
        "NAME", data.draw(st.sampled_from(["web", "a.b", "exec", "watch"]))
    )
    places = data.draw(st.sets(st.integers(1, len(path) - 1), max_size=3))
    written = "".join(
        f"%{ord(character):02X}" if place in places and character != "/" else character
        for place, character in enumerate(path)
    )
    try:
        info = request_info("GET", written)
    except ProtocolError:
        return
    wanted = request_info("GET", path)
    if wanted.subresource == "proxy" and info != wanted:
        assert info.session is SessionKind.NODE_PROXY_COMMAND
        return
    assert info == wanted


def test_lengths() -> None:
    longest = "/" + "a" * (MAX_PATH - 1)
    assert split_target(longest)[0] == longest
    query = "c" * (MAX_TARGET - 3)
    assert split_target("/a?" + query) == ("/a", query, True)
    for overlong in (longest + "a", longest + "%3A", "/a?c" + query, "a" * (MAX_TARGET + 1)):
        with pytest.raises(ProtocolError) as caught:
            split_target(overlong)
        assert caught.value.status == 414
