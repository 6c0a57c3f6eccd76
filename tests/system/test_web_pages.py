"""A page that a Service serves, opened through the proxy and the real API server in real Chromium: it can't be the
person who opens it, and no other site's page leads anybody there."""

from __future__ import annotations

import contextlib
import http.server
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page, sync_playwright

from tests.bed import Bed, Node, free_port
from tests.system.beds import own_address
from tests.system.proxy import Proxy, wait_until
from tests.system.raw import local_port

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or ""

pytestmark = pytest.mark.skipif(
    not CHROMIUM and os.environ.get("K8SPROXY_REQUIRE_BED") != "1", reason="there is no Chromium here"
)

PROXY = "/api/v1/namespaces/default/services/hostile:http/proxy"
BINDINGS = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
# What the page tries, each step whatever became of those before. What came of it is told to its own server.
HOSTILE = """<!doctype html><title>hostile</title><link rel=stylesheet href=style.css><p id=p>a page</p>
<script src=script.js></script><script>
const binding = name => JSON.stringify({apiVersion: "rbac.authorization.k8s.io/v1", kind: "ClusterRoleBinding",
  metadata: {name}, roleRef: {apiGroup: "rbac.authorization.k8s.io", kind: "ClusterRole", name: "cluster-admin"},
  subjects: [{apiGroup: "rbac.authorization.k8s.io", kind: "Group", name: "everybody"}]})
const bindings = "%s"
const json = {"Content-Type": "application/json"}
const tries = {
  posted: () => fetch(bindings, {method: "POST", headers: json, body: binding("pwned-json")}).then(r => r.status),
  blindly: () => fetch(bindings, {method: "POST", mode: "no-cors", body: new Blob([binding("pwned-blob")])})
    .then(r => r.type),
  read: () => fetch("/api/v1/namespaces/default/secrets").then(r => r.text()),
  cookie: () => document.cookie || "none",
  stored: () => localStorage.length,
  worker: () => navigator.serviceWorker.register("sw.js", {scope: "/"}).then(r => r.scope),
  framed: () => new Promise((good, bad) => {
    const frame = document.createElement("iframe")
    frame.onload = () => { try { good(frame.contentDocument.body.innerText) } catch (e) { bad(e) } }
    frame.src = "/api/v1/namespaces/default/pods"
    document.body.append(frame)
  }),
  socket: () => new Promise((good, bad) => {
    const socket = new WebSocket(location.href.replace(/^http/, "ws") + "socket")
    socket.onopen = good
    socket.onerror = () => bad("refused")
  }),
}
;(async () => {
  const found = {script: typeof loaded, style: getComputedStyle(p).color}
  for (const [name, attempt] of Object.entries(tries)) {
    try { found[name] = "" + await attempt() } catch (error) { found[name] = "failed" }
  }
  document.title = JSON.stringify(found)
})()
</script>""".replace("%s", BINDINGS)
EVIL = """<!doctype html><title>evil</title><iframe id=frame src="%s/framed"></iframe>
<object data="%s/object"></object><embed src="%s/embed">
<a id=link href="%s/linked">look</a><form method=post action="%s/form"><button id=send></button></form>"""


@dataclass
class Web:
    """A server that serves one page everywhere, with hostile fields, and remembers what was asked of it."""

    page: bytes = b""
    fields: tuple[tuple[str, str], ...] = ()
    asked: list[str] = field(default_factory=list)


@contextlib.contextmanager
def serving(address: str, port: int, web: Web) -> Iterator[None]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # http.server's name
            web.asked.append(f"{self.command} {self.path}")
            kinds = {"script.js": ("text/javascript", b"var loaded = 1"), "sw.js": ("text/javascript", b"")}
            kinds["style.css"] = ("text/css", b"p { color: rgb(1, 2, 3) }")
            kind, body = kinds.get(self.path.rpartition("/")[2], ("text/html", web.page))
            self.send_response(200)
            for name, value in (("Content-Type", kind), ("Content-Length", str(len(body))), *web.fields):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer((address, port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def hostile(bed: Bed) -> Iterator[Web]:
    """A Service whose pod is a server of this machine."""
    address, port = own_address(), free_port()
    if address == "127.0.0.1":
        pytest.skip("the API server refuses to proxy to loopback, and this machine has no other address")
    web = Web(
        HOSTILE.encode(),
        (
            ("Set-Cookie", "planted=1; Path=/"),
            ("Clear-Site-Data", '"storage"'),
            ("Service-Worker-Allowed", "/"),
            ("Strict-Transport-Security", "max-age=1000"),
            ("Content-Security-Policy", "default-src * 'unsafe-inline'; sandbox allow-scripts allow-same-origin"),
        ),
    )
    bed.pod("hostile")
    # As the kubelet says where a pod is: the API server proxies to addresses of pods alone.
    status = {"status": {"podIP": address, "podIPs": [{"ip": address}]}}
    patched = bed.cluster.api(
        "PATCH", "api/v1/namespaces/default/pods/hostile/status", status, content_type="application/merge-patch+json"
    )
    assert patched.ok, patched
    meta = {"name": "hostile", "namespace": "default"}
    reference = {"kind": "Pod", "name": "hostile", "namespace": "default"}
    bed.cluster.apply(
        {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"ports": [{"name": "http", "port": 80}]}},
        {
            "apiVersion": "v1",
            "kind": "Endpoints",
            "metadata": meta,
            "subsets": [
                {"addresses": [{"ip": address, "targetRef": reference}], "ports": [{"name": "http", "port": port}]}
            ],
        },
    )
    with serving(address, port, web):

        def reached() -> bool:
            return bed.cluster.api("GET", f"{PROXY.lstrip('/')}/style.css").ok

        wait_until(reached, "the page behind the Service")
        web.asked.clear()
        yield web
    bed.cluster.delete("api/v1/namespaces/default/services/hostile")
    bed.cluster.delete_pod("hostile")
    for name in "pwned-json", "pwned-blob":
        with contextlib.suppress(AssertionError):
            bed.cluster.delete(f"{BINDINGS.lstrip('/')}/{name}")


@pytest.fixture
def origin(new_proxy: Callable[..., Proxy], alice_node: Node) -> Iterator[str]:
    """alice's way to the proxy as a browser has it; plain HTTP on loopback, which browsers take for secure."""
    port = free_port()
    proxy = new_proxy(listen=[{"address": f"127.0.0.1:{port}", "tls": {"source": "none"}}])
    with local_port(alice_node, proxy.node.dns_name, port) as here:
        yield f"http://127.0.0.1:{here}"


@pytest.fixture
def browser() -> Iterator[BrowserContext]:
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = chromium.new_context()
        context.set_default_timeout(60_000)
        yield context
        chromium.close()


def _tried(page: Page) -> dict[str, str]:
    page.wait_for_function("() => document.title.startsWith('{')")
    found: dict[str, str] = page.evaluate("() => JSON.parse(document.title)")
    return found


def _bindings(bed: Bed) -> set[str]:
    return {item["metadata"]["name"] for item in (bed.cluster.get(BINDINGS.lstrip("/")) or {"items": []})["items"]}


def test_a_page_of_a_pod_is_not_the_person_who_opens_it(
    hostile: Web, origin: str, browser: BrowserContext, bed: Bed
) -> None:
    page = browser.new_page()
    answer = page.goto(f"{origin}{PROXY}/")
    assert answer is not None and answer.status == 200
    tried = _tried(page)
    # It is a page, with all that it is made of.
    assert tried.pop("script") == "number" and tried.pop("style") == "rgb(1, 2, 3)"
    # What was sent blindly has an answer that nobody can read; it was a refusal.
    assert tried.pop("blindly") in ("opaque", "failed")
    assert set(tried.values()) == {"failed"}, tried
    assert not {"pwned-json", "pwned-blob"} & _bindings(bed)
    # What its answer said for the origin has come to nothing.
    assert {cookie["path"] for cookie in browser.cookies()} == {PROXY}
    fields = answer.headers
    assert not {"clear-site-data", "service-worker-allowed", "strict-transport-security"} & set(fields)


def test_another_sites_page_leads_nobody_there(hostile: Web, origin: str, browser: BrowserContext) -> None:
    target = f"{origin}{PROXY}"
    evil = Web(EVIL.replace("%s", target).encode())
    port = free_port()
    with serving("127.0.0.1", port, evil):
        page = browser.new_page()
        page.goto(f"http://localhost:{port}/")
        for selector in "#link", "#send":
            page.goto(f"http://localhost:{port}/")
            page.click(selector)
            page.wait_for_url(f"{target}/**")
            assert "k8sproxy:" in page.inner_text("body")
        page.goto(f"http://localhost:{port}/")
        with browser.expect_page() as opened:
            page.evaluate(f"() => {{ window.open('{target}/opened') }}")
        opened.value.wait_for_load_state()
        assert "k8sproxy:" in opened.value.inner_text("body")
    assert hostile.asked == []


def test_what_a_person_opens_comes(hostile: Web, origin: str, browser: BrowserContext) -> None:
    """And the API itself, in whose answers there is nothing that a page could be."""
    page = browser.new_page()
    answer = page.goto(f"{origin}{PROXY}/typed")
    assert answer is not None and answer.status == 200
    wait_until(lambda: "GET /typed" in hostile.asked, "the page's own request")
    answer = page.goto(f"{origin}/api/v1/namespaces/default/pods")
    assert answer is not None and answer.json()["kind"] == "PodList"
