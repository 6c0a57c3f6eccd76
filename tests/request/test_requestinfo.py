"""RequestInfo: the API server's own rules as a table, whose rows agree with k8s.io/apiserver v0.36.3's own factory."""

from __future__ import annotations

import dataclasses
import itertools
from urllib.parse import unquote, unquote_plus

import pytest
from hypothesis import given

from k8sproxy.common.errors import ProtocolError
from k8sproxy.request.classify import SessionKind
from k8sproxy.request.requestinfo import CACHED_TARGET, RequestInfo, request_info
from tests.strategies import METHODS, UPGRADES, targets

CORE = {"is_resource_request": True, "api_prefix": "api", "api_version": "v1"}
APPS = {"is_resource_request": True, "api_prefix": "apis", "api_group": "apps", "api_version": "v1"}
BATCH = {"is_resource_request": True, "api_prefix": "apis", "api_group": "batch", "api_version": "v1"}


@pytest.mark.parametrize(
    "target",
    [
        *(
            "/",
            "/api",
            "/api/",
            "/api/v1",
            "/api/v1/",
            "/apis",
            "/apis/",
            "/apis/apps",
            "/version",
            "/version/",
            "/healthz",
        ),
        *("/healthz/etcd", "/readyz?verbose", "/livez/ping", "/metrics", "/openapi/v2", "/openapi/v3", "/openapi/v3/"),
        *(
            "/openapi/v3/apis/apps/v1?hash=ABC",
            "/.well-known/openid-configuration",
            "/openid/v1/jwks",
            "/logs/",
            "/nope/a/b/c/d",
        ),
    ],
)
def test_paths_without_a_resource(target: str) -> None:
    path, _, query = target.partition("?")
    assert request_info("GET", target) == RequestInfo("GET", path, query, "", "get")
    assert request_info("OPTIONS", target).verb == "options"


@pytest.mark.parametrize("target", ["/apis/apps/v1", "/apis/apps/v1/"])
def test_discovery_of_a_group_keeps_its_prefix(target: str) -> None:
    assert request_info("GET", target) == RequestInfo("GET", target, "", "", "get", api_prefix="apis")


@pytest.mark.parametrize(
    ("method", "path", "verb", "namespace", "name", "subresource", "parts", "of"),
    [
        # collections and objects, by method
        ("GET", "/api/v1/pods", "list", "", "", "", "pods", CORE),
        ("HEAD", "/api/v1/pods", "list", "", "", "", "pods", CORE),
        ("POST", "/api/v1/namespaces/d/pods", "create", "d", "", "", "pods", CORE),
        ("DELETE", "/api/v1/namespaces/d/pods", "deletecollection", "d", "", "", "pods", CORE),
        ("GET", "/api/v1/namespaces/d/pods/web", "get", "d", "web", "", "pods/web", CORE),
        ("HEAD", "/api/v1/namespaces/d/pods/web", "get", "d", "web", "", "pods/web", CORE),
        ("PUT", "/api/v1/namespaces/d/pods/web", "update", "d", "web", "", "pods/web", CORE),
        ("PATCH", "/api/v1/namespaces/d/pods/web/status", "patch", "d", "web", "status", "pods/web/status", CORE),
        ("DELETE", "/api/v1/namespaces/d/pods/web", "delete", "d", "web", "", "pods/web", CORE),
        ("OPTIONS", "/api/v1/namespaces/d/pods/web", "", "d", "web", "", "pods/web", CORE),
        ("get", "/api/v1/namespaces/d/pods/web", "", "d", "web", "", "pods/web", CORE),
        ("GET", "/apis/apps/v1/deployments", "list", "", "", "", "deployments", APPS),
        ("PATCH", "/apis/apps/v1/namespaces/d/deployments/a/x", "patch", "d", "a", "x", "deployments/a/x", APPS),
        ("POST", "/apis/batch/v1/namespaces/d/jobs", "create", "d", "", "", "jobs", BATCH),
        # a namespace is both a resource and a place
        ("GET", "/api/v1/namespaces", "list", "", "", "", "namespaces", CORE),
        ("GET", "/api/v1/namespaces/d", "get", "d", "d", "", "namespaces/d", CORE),
        ("PUT", "/api/v1/namespaces/d/finalize", "update", "d", "d", "finalize", "namespaces/d/finalize", CORE),
        ("PUT", "/api/v1/namespaces/d/status", "update", "d", "d", "status", "namespaces/d/status", CORE),
        ("GET", "/api/v1/namespaces/status/pods", "list", "status", "", "", "pods", CORE),
        ("GET", "/api/v1/namespaces/d/nope", "list", "d", "", "", "nope", CORE),
        # verbs in the path
        ("GET", "/api/v1/watch/pods", "watch", "", "", "", "pods", CORE),
        ("GET", "/api/v1/watch/namespaces/d/pods/web", "watch", "d", "web", "", "pods/web", CORE),
        ("POST", "/apis/apps/v1/watch/namespaces/d/deployments", "watch", "d", "", "", "deployments", APPS),
        ("GET", "/api/v1/proxy/namespaces/d/pods/web/exec", "proxy", "d", "web", "", "pods/web/exec", CORE),
        ("GET", "/api/v1/proxy/nodes/n1", "proxy", "", "n1", "", "nodes/n1", CORE),
        # deeper than a subresource, and names that need escapes
        ("GET", "/api/v1/namespaces/d/pods/web/proxy/a/b", "get", "d", "web", "proxy", "pods/web/proxy/a/b", CORE),
        ("GET", "/api/v1/namespaces/d/services/a:80/proxy/", "get", "d", "a:80", "proxy", "services/a:80/proxy", CORE),
        ("GET", "/api/v1/nodes/https:n:1/proxy/metrics", "get", "", "https:n:1", "proxy",
         "nodes/https:n:1/proxy/metrics", CORE),
        ("GET", "/api/v1/namespaces/d/configmaps/a:b", "get", "d", "a:b", "", "configmaps/a:b", CORE),
    ],
)  # fmt: skip
def test_resources(
    method: str, path: str, verb: str, namespace: str, name: str, subresource: str, parts: str, of: dict[str, str]
) -> None:
    info = request_info(method, path)
    segments = tuple(parts.split("/"))
    expected = RequestInfo(
        method, path, "", "", verb, info.session, namespace=namespace, resource=segments[0], subresource=subresource,
        name=name, parts=segments, **of,  # type: ignore[arg-type]  # a table of keyword arguments
    )  # fmt: skip
    assert info == expected


def test_names_are_decoded() -> None:
    info = request_info("GET", "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode%20a%C3%A9?a=%3A")
    assert info.name == "system:node aé"
    assert info.path.endswith("/clusterroles/system:node aé")
    assert info.query == "a=%3A"


@pytest.mark.parametrize(
    ("query", "verb"),
    [
        *(
            ("watch=true", "watch"),
            ("watch=1", "watch"),
            ("watch", "watch"),
            ("watch=", "watch"),
            ("watch=no", "watch"),
        ),
        *(("watch=0", "list"), ("watch=false", "list"), ("watch=FALSE", "list"), ("limit=1", "list"), ("", "list")),
        *(("watch=0&watch=1", "list"), ("limit=1&&watch=1", "watch"), ("%77atch=1", "watch"), ("Watch=1", "list")),
        # What Go's url.ParseQuery leaves out: broken escapes and semicolons.
        *(("watch=%zz", "list"), ("watch=1;", "list"), ("+watch=1", "list"), ("watch=%46alse", "list")),
    ],
)
def test_a_get_of_a_collection_is_a_list_or_a_watch(query: str, verb: str) -> None:
    assert request_info("GET", f"/api/v1/pods?{query}").verb == verb
    assert request_info("GET", f"/api/v1/namespaces/d/pods/web?{query}").verb == "get"


@pytest.mark.parametrize(
    ("selector", "name"),
    [
        ("metadata.name=web", "web"),
        ("metadata.name==web", "web"),
        ("metadata.name%3Dweb", "web"),
        ("metadata.name%3Dwe+b", "we b"),
        ("metadata.name=web,spec.nodeName=n", "web"),
        ("spec.nodeName=n,metadata.name=web,,", "web"),
        ("metadata.name=b,metadata.name=a", "a"),
        ("metadata.name=a%5C%2Cb%5C%3Dc%5C%5C", "a,b=c\\"),
        ("metadata.name!=web", ""),
        ("metadata.namespace=d", ""),
        ("xmetadata.name=web", ""),
        ("metadata.name", ""),
        ("metadata.name=", ""),
        ("metadata.name=a=b", ""),
        ("metadata.name=web,nonsense", ""),
        ("metadata.name=web,a=b%5C", ""),
        ("metadata.name=a%5Cb", ""),
        ("metadata.name=..", ""),
        ("metadata.name=.", ""),
        ("metadata.name=a/b", ""),
        ("metadata.name=a%25b", ""),
    ],
)
def test_a_field_selector_may_name_the_object(selector: str, name: str) -> None:
    info = request_info("GET", f"/api/v1/namespaces/d/pods?fieldSelector={selector}&labelSelector=a%3Db")
    assert (info.verb, info.name, info.label_selector) == ("list", name, "a=b")
    assert info.field_selector == unquote_plus(selector)
    watch = request_info("GET", f"/api/v1/pods?fieldSelector={selector}&watch=1")
    assert (watch.verb, watch.name) == ("watch", name)


def test_selectors_belong_to_collections() -> None:
    query = "fieldSelector=metadata.name%3Da&labelSelector=b"
    collection = request_info("DELETE", f"/api/v1/namespaces/d/pods?{query}")
    assert collection.verb == "deletecollection"
    assert (collection.name, collection.field_selector, collection.label_selector) == ("", "metadata.name=a", "b")
    for target in (f"/api/v1/namespaces/d/pods/web?{query}", f"/api/v1/watch/pods?{query}"):
        info = request_info("GET", target)
        assert (info.field_selector, info.label_selector) == ("", "")
    assert request_info("POST", f"/api/v1/namespaces/d/pods?{query}").field_selector == ""


@pytest.mark.parametrize("target", ["/api/v1/watch", "/api/v1/proxy", "/apis/apps/v1/watch", "/api/v1/watch/"])
def test_a_verb_without_a_resource_is_refused(target: str) -> None:
    with pytest.raises(ProtocolError):
        request_info("GET", target)


@pytest.mark.parametrize(
    "target",
    [
        *("/api/v1/pods/", "/api/v1/namespaces/d/pods/web/exec/", "/api/v1/nodes/n/", "/apis/apps/v1/deployments/"),
        *("/apis/apps/v1/namespaces/d/pods/web/proxy/", "/api/v1/namespaces/d/secrets/a/proxy/", "/api/v1/namespaces/"),
    ],
)
def test_a_slash_at_the_end_of_a_resource_is_refused(target: str) -> None:
    with pytest.raises(ProtocolError, match="ends in a slash"):
        request_info("GET", target)


@pytest.mark.parametrize("word", ["exec%20", "exec;a=b", "exec,x", "%C3%A9xec", "exec:x", "%EF%BD%85xec"])
def test_what_cannot_be_a_word_of_the_core_group_is_refused(word: str) -> None:
    for target in (f"/api/v1/namespaces/d/pods/web/{word}", f"/api/v1/namespaces/d/{word}/web/exec"):
        with pytest.raises(ProtocolError):
            request_info("GET", target)
    assert request_info("GET", f"/apis/custom.metrics.k8s.io/v1/namespaces/d/pods/*/{word}").name == "*"


def test_upgrade_is_the_token_in_lower_case() -> None:
    target = "/api/v1/namespaces/d/pods/web/exec?command=sh"
    infos = {request_info("POST", target, upgrade) for upgrade in ("SPDY/3.1", " spdy/3.1\t", "Spdy/3.1")}
    assert len(infos) == 1
    assert infos.pop().upgrade == "spdy/3.1"


def test_what_is_asked_again_is_remembered_within_bounds() -> None:
    target = "/api/v1/namespaces/d/pods/remembered"
    assert request_info("GET", target) is request_info("GET", target)
    for method, path, upgrade in [
        ("GET", "/x?" + "a" * CACHED_TARGET, ""),
        ("G" * 33, "/x", ""),
        ("GET", "/x", "u" * 33),
    ]:
        first, second = request_info(method, path, upgrade), request_info(method, path, upgrade)
        assert first == second
        assert first is not second


def test_nothing_can_be_changed() -> None:
    info = request_info("GET", "/api/v1/pods")
    with pytest.raises(dataclasses.FrozenInstanceError):
        info.session = SessionKind.EXEC  # type: ignore[misc]  # that is what is tested


@given(METHODS, targets(), UPGRADES)
def test_any_target_gives_a_requestinfo_or_a_protocolerror(method: str, target: str, upgrade: str) -> None:
    try:
        info = request_info(method, target, upgrade)
    except ProtocolError as error:
        assert error.status in (400, 414)
        return
    assert info.path.startswith("/")
    assert info.is_resource_request == bool(info.resource)
    assert "\x00" not in info.path


# Spelling attacks. Each list holds ways to write one piece of /api/v1/namespaces/d/pods/web/exec; the API server
# takes some of their products for exec, and none may come out as anything but exec or a refusal.
_SLASHES = ["/", "//", "/./", "/../", "/x/../", "%2f", "%2F", "\\", "%5c", "/%2e/", "/%2e%2e/", ";/", "/;"]
_EXECS = [
    "exec",
    "%65xec",
    "e%78ec",
    "%65%78%65%63",
    "%2565xec",
    "EXEC",
    "exec/",
    "exec//",
    "exec/.",
    "exec/x",
    "exec%2f",
]
_EXECS += [
    "exec?",
    "exec#",
    "exec%00",
    "exec%20",
    "./exec",
    "x/../exec",
    "%2e/exec",
    "exec;a=b",
    "exec/..",
    "/exec",
    "exec?/",
]
_PODS = ["pods", "%70ods", "pod%73", "PODS", "./pods", "x/../pods"]


@pytest.mark.parametrize("exec_", _EXECS)
def test_no_spelling_of_exec_is_taken_for_something_else(exec_: str) -> None:
    kinds = set()
    for slash, pods, method, upgrade in itertools.product(_SLASHES, _PODS, ("GET", "POST", "X"), ("", "websocket")):
        for prefix in ("/api/v1", "//api/v1", "/api//v1", "/api/./v1", "/a/../api/v1", "/%61pi/v1"):
            target = f"{prefix}/namespaces/d{slash}{pods}/web{slash}{exec_}"
            try:
                info = request_info(method, target, upgrade)
            except ProtocolError:
                continue
            kinds.add(info.session)
            if _as_anybody_reads(target)[-3::2] == ["pods", "exec"]:
                assert info.session is SessionKind.EXEC, target
            elif upgrade:
                assert info.session in (SessionKind.EXEC, SessionKind.UNKNOWN_UPGRADE), target
    assert (SessionKind.EXEC in kinds) == (exec_ in ("exec", "exec?", "exec/x", "exec?/"))


def _as_anybody_reads(target: str) -> list[str]:
    """The segments of a path as the most forgiving reader on the way could take it."""
    path = target.partition("?")[0].partition("#")[0]
    for _ in range(3):
        path = unquote(path)
    segments: list[str] = []
    for segment in path.replace("\\", "/").split("/"):
        if segment == "..":
            del segments[-1:]
        elif segment.strip("\x00 ") not in ("", "."):
            segments.append(segment.strip("\x00 "))
    return segments
