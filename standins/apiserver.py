"""A stand-in for a Kubernetes API server: what kubectl get, create, apply, delete, logs, exec and auth ask for.

It is here so that the demo needs no cluster, and knows the core group only. Like a real one it takes the proxy's
account by its bearer token, which may do nothing but impersonate; then Impersonate-User and Impersonate-Group say who
is asking, and a small RBAC by group says what they may do. It speaks JSON over HTTP/1.1 and TLS.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import hmac
import json
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from demo.ca import Authority
from standins import protobuf, remotecommand
from standins.objects import KINDS, Kind, Object, Store, furnish, table

VERSION = "v1.37.0+demo"  # kubectl warns about a server more than one minor version away from its own
_LOOK = ("get", "list", "watch")
_ALL = ("*",)

RULES: Mapping[str, tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]] = {
    "system:masters": ((_ALL, _ALL),),
    "demo:viewers": ((_LOOK, (*KINDS, "pods/log")),),
    "demo:deployers": ((_LOOK, tuple(KINDS)), (("create", "update", "patch", "delete"), ("configmaps",))),
}
"""What each group may do: ((verbs, resources), ..), like the rules of a ClusterRole."""

_GROUPS = {
    "authentication.k8s.io": ("selfsubjectreviews", "SelfSubjectReview"),
    "authorization.k8s.io": ("selfsubjectaccessreviews", "SelfSubjectAccessReview"),
}
# RFC 1123, as the API server wants names; they also become folders, which is why ".." can't be one.
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_JSON_TYPES = ("application/json", "application/merge-patch+json", "application/strategic-merge-patch+json")
_COLLECTION_VERBS = {"GET": "list", "POST": "create"}
_OBJECT_VERBS = {"GET": "get", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


@dataclass(frozen=True)
class User:
    """Whom a request is impersonated as."""

    name: str
    groups: tuple[str, ...]

    def may(self, verb: str, resource: str) -> bool:
        """resource: plural, or plural/subresource."""
        return any(
            (verb in verbs or verbs == _ALL) and (resource in resources or resources == _ALL)
            for group in self.groups
            for verbs, resources in RULES.get(group, ())
        )


class _Failure(Exception):
    """An answer that is a Status."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.response = web.json_response(
            {
                "kind": "Status",
                "apiVersion": "v1",
                "metadata": {},
                "status": "Failure",
                "message": message,
                "reason": reason,
                "code": code,
            },
            status=code,
        )


@dataclass(frozen=True)
class _Target:
    """What a path under /api/v1 names; namespace and name may be empty."""

    kind: Kind
    namespace: str
    name: str
    subresource: str

    @property
    def resource(self) -> str:
        return f"{self.kind.plural}/{self.subresource}" if self.subresource else self.kind.plural


class ApiServer:
    """The stand-in cluster. token: the proxy's account; home: a folder for the folders of the "containers"."""

    def __init__(self, token: str, home: Path) -> None:
        self.store = Store()
        furnish(self.store)
        self._authorization = f"Bearer {token}".encode()
        self._home = home
        self._started = datetime.datetime.now(datetime.UTC)

    @contextlib.asynccontextmanager
    async def serve(self, authority: Authority) -> AsyncIterator[int]:
        """Listens on 127.0.0.1 with a certificate of `authority`; gives the port."""
        app = web.Application(middlewares=[self._answer])
        app.router.add_route("*", "/{path:.*}", self._route)
        # handler_cancellation: a client that goes ends its watch or log at once.
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.2)
        await runner.setup()
        try:
            site = web.TCPSite(
                runner, "127.0.0.1", 0, ssl_context=authority.server_context(self._home, "127.0.0.1", "localhost")
            )
            await site.start()
            port: int = runner.addresses[0][1]
            yield port
        finally:
            await runner.cleanup()

    @web.middleware
    async def _answer(self, request: web.Request, handler: Any) -> web.StreamResponse:
        try:
            response: web.StreamResponse = await handler(request)
        except _Failure as failure:
            return failure.response
        return response

    async def _route(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/readyz":
            return web.Response(text="ok")
        user = self._authenticate(request)
        match request.path.strip("/").split("/"):
            case ["version"]:
                version = {"major": "1", "minor": "37", "gitVersion": VERSION, "platform": "linux/amd64"}
                return web.json_response(version)
            case ["api" | "apis"] | ["api", "v1"] | ["apis", _] | ["apis", _, "v1"]:
                return web.json_response(_discovery(request.path.strip("/")))
            case ["openapi", "v3", *rest]:
                return web.json_response(_openapi("/".join(rest)))
            case ["apis", "authentication.k8s.io", "v1", "selfsubjectreviews"] if request.method == "POST":
                info = {"username": user.name, "groups": list(user.groups)}
                return web.json_response({**await _body(request), "status": {"userInfo": info}}, status=201)
            case ["apis", "authorization.k8s.io", "v1", "selfsubjectaccessreviews"] if request.method == "POST":
                review = await _body(request)
                return web.json_response({**review, "status": {"allowed": _review(user, review)}}, status=201)
            case ["api", "v1", *parts]:
                return await self._resource(request, user, _target(parts))
        raise _Failure(404, "NotFound", "the server could not find the requested resource")

    def _authenticate(self, request: web.Request) -> User:
        if not hmac.compare_digest(request.headers.get("Authorization", "").encode(), self._authorization):
            raise _Failure(401, "Unauthorized", "Unauthorized")
        name = request.headers.get("Impersonate-User")
        if not name:
            raise _Failure(403, "Forbidden", "the proxy's own account may impersonate, and nothing else")
        return User(name, (*request.headers.getall("Impersonate-Group", []), "system:authenticated"))

    async def _resource(self, request: web.Request, user: User, target: _Target) -> web.StreamResponse:
        verb = (_OBJECT_VERBS if target.name else _COLLECTION_VERBS).get(request.method)
        if target.subresource == "exec":
            verb = "create"
        elif verb == "list" and request.query.get("watch") in ("true", "1"):
            verb = "watch"
        if verb is None:
            raise _Failure(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
        if not user.may(verb, target.resource):
            raise _Failure(403, "Forbidden", _forbidden(user, verb, target))
        if target.name and self.store.get(target.kind.plural, target.namespace, target.name) is None:
            raise _Failure(404, "NotFound", f'{target.kind.plural} "{target.name}" not found')
        if target.subresource == "exec":
            return await remotecommand.serve(request, target.name, self._folder(target))
        if target.subresource == "log":
            return await self._log(request, target)
        if verb == "watch":
            return await self._watch(request, target)
        return await self._object(request, verb, target)

    def _folder(self, target: _Target) -> Path:
        """The folder of a pod's processes."""
        folder = self._home / target.namespace / target.name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    async def _object(self, request: web.Request, verb: str, target: _Target) -> web.Response:
        plural, namespace, name = target.kind.plural, target.namespace, target.name
        if verb == "list":
            things = [thing for thing in self.store.list(plural, namespace) if _selected(request, thing)]
            if _wants_table(request):
                return web.json_response(table(target.kind, things, self.store.version))
            version = {"resourceVersion": str(self.store.version)}
            kind = f"{target.kind.kind}List"
            return web.json_response({"kind": kind, "apiVersion": "v1", "metadata": version, "items": things})
        if verb == "delete":
            return web.json_response(self.store.delete(plural, namespace, name))
        if verb == "get":
            thing = self.store.get(plural, namespace, name) or {}
            return web.json_response(
                table(target.kind, [thing], self.store.version) if _wants_table(request) else thing
            )
        body = await _body(request)
        if verb == "create":
            name = str(body.get("metadata", {}).get("name", ""))
            if not _SUBDOMAIN.fullmatch(name):
                raise _Failure(
                    422, "Invalid", f"metadata.name: Invalid value: {name!r}: a lower case DNS name is needed"
                )
            if namespace and not self.store.get("namespaces", "", namespace):
                raise _Failure(404, "NotFound", f'namespaces "{namespace}" not found')
            if self.store.get(plural, namespace, name):
                raise _Failure(409, "AlreadyExists", f'{plural} "{name}" already exists')
        elif verb == "patch":
            body = _merge(self.store.get(plural, namespace, name), body)
        if "dryRun" in request.query:
            return web.json_response(body)
        return web.json_response(self.store.put(plural, namespace, name, body), status=201 if verb == "create" else 200)

    async def _watch(self, request: web.Request, target: _Target) -> web.StreamResponse:
        since = request.query.get("resourceVersion", "")
        response = await _stream(request, "application/json")
        headers = True
        async with contextlib.AsyncExitStack() as stack:
            # Without a version, or with 0, a watch begins with what there is.
            queue = stack.enter_context(self.store.watch(int(since) if since.isdigit() else 0))
            with contextlib.suppress(TimeoutError):
                await stack.enter_async_context(asyncio.timeout(float(request.query.get("timeoutSeconds", 3600))))
                while True:
                    version, change, plural, thing = await queue.get()
                    elsewhere = target.namespace not in ("", thing["metadata"].get("namespace", ""))
                    if plural != target.kind.plural or elsewhere or not _selected(request, thing):
                        continue
                    if _wants_table(request):
                        thing = table(target.kind, [thing], version, headers=headers)
                        headers = False
                    await response.write(json.dumps({"type": change, "object": thing}).encode() + b"\n")
        return response

    async def _log(self, request: web.Request, target: _Target) -> web.StreamResponse:
        """A line a second since the start; with follow, on and on."""
        response = await _stream(request, "text/plain")
        now = int((datetime.datetime.now(datetime.UTC) - self._started).total_seconds())
        number = max(0, now - int(request.query.get("tailLines", now)))
        while True:
            for second in range(number, now):
                time = (self._started + datetime.timedelta(seconds=second)).strftime("%H:%M:%S")
                await response.write(f"{time} {target.name}: request {second} answered\n".encode())
            if request.query.get("follow") != "true":
                return response
            await asyncio.sleep(1)
            number, now = now, now + 1


async def _stream(request: web.Request, content_type: str) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": content_type})
    await response.prepare(request)
    return response


async def _body(request: web.Request) -> dict[str, Any]:
    """The body as a JSON object. A merge patch is one; other ways to patch aren't known here."""
    try:
        if request.content_type == protobuf.MEDIA_TYPE:
            return protobuf.decode(await request.read())
        if request.content_type not in _JSON_TYPES:
            raise _Failure(415, "UnsupportedMediaType", f"the stand-in takes {', '.join(_JSON_TYPES)}")
        body = await request.json()
    except ValueError as error:
        raise _Failure(400, "BadRequest", str(error)) from None
    if not isinstance(body, dict):
        raise _Failure(400, "BadRequest", "the body isn't a JSON object")
    return body


def _target(parts: list[str]) -> _Target:
    namespace = ""
    if len(parts) > 2 and parts[0] == "namespaces" and parts[2] in KINDS:
        namespace, parts = parts[1], parts[2:]
    plural, name, subresource = (*parts, "", "", "")[:3]
    kind = KINDS.get(plural)
    known = kind is not None and (not subresource or subresource in dict(kind.subresources))
    if kind is None or not known or len(parts) > 3 or (name and kind.namespaced and not namespace):
        raise _Failure(404, "NotFound", "the server could not find the requested resource")
    return _Target(kind, namespace, name, subresource)


def _forbidden(user: User, verb: str, target: _Target) -> str:
    """The sentence of the real one (apiserver's responsewriters.Forbidden)."""
    named = f' "{target.name}"' if target.name else ""
    where = f'in the namespace "{target.namespace}"' if target.namespace else "at the cluster scope"
    return (
        f'{target.kind.plural}{named} is forbidden: User "{user.name}" cannot {verb} resource "{target.resource}" '
        f'in API group "" {where}'
    )


def _review(user: User, review: Object) -> bool:
    asked = review.get("spec", {}).get("resourceAttributes")
    if not asked:
        return "system:masters" in user.groups
    resource, subresource = asked.get("resource", ""), asked.get("subresource", "")
    return user.may(asked.get("verb", ""), f"{resource}/{subresource}" if subresource else resource)


def _wants_table(request: web.Request) -> bool:
    return "as=Table" in request.headers.get("Accept", "")


def _selected(request: web.Request, thing: Object) -> bool:
    """Whether the query's selectors take this object; `key=value` and metadata.name are known."""
    metadata = thing["metadata"]
    labels = {f"label:{key}": value for key, value in metadata.get("labels", {}).items()}
    known = labels | {"field:metadata.name": metadata["name"], "field:metadata.namespace": metadata.get("namespace")}
    for prefix in ("label", "field"):
        for term in filter(None, request.query.get(f"{prefix}Selector", "").split(",")):
            key, _, value = term.replace("==", "=").partition("=")
            if known.get(f"{prefix}:{key}") != value:
                return False
    return True


def _merge(old: Any, patch: Any) -> Any:
    """JSON merge patch (RFC 7386). A strategic one is taken for it: the same, where no list is changed."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(old) if isinstance(old, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merge(merged.get(key), value)
    return merged


def _discovery(path: str) -> Object:
    """The discovery documents of old, which kubectl falls back to where there are no aggregated ones."""
    if path == "api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    groups = [
        {"name": name, "versions": [version], "preferredVersion": version}
        for name in _GROUPS
        for version in [{"groupVersion": f"{name}/v1", "version": "v1"}]
    ]
    if path == "apis":
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    if path == "api/v1":
        resources = [entry for kind in KINDS.values() for entry in _resource_entries(kind)]
        return {"kind": "APIResourceList", "groupVersion": "v1", "resources": resources}
    name = path.split("/")[1]
    if name not in _GROUPS:
        raise _Failure(404, "NotFound", "the server could not find the requested resource")
    if path == f"apis/{name}":
        return {"kind": "APIGroup", "apiVersion": "v1", **next(group for group in groups if group["name"] == name)}
    plural, kind = _GROUPS[name]
    review = {"name": plural, "singularName": "", "namespaced": False, "kind": kind, "verbs": ["create"]}
    return {"kind": "APIResourceList", "groupVersion": f"{name}/v1", "resources": [review]}


def _resource_entries(kind: Kind) -> list[Object]:
    entry: Object = {
        "name": kind.plural,
        "singularName": kind.kind.lower(),
        "namespaced": kind.namespaced,
        "kind": kind.kind,
        "shortNames": list(kind.short),
        "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"],
    }
    return [entry] + [
        {"name": f"{kind.plural}/{name}", "singularName": "", "namespaced": True, "kind": takes, "verbs": ["get"]}
        for name, takes in kind.subresources
    ]


def _openapi(path: str) -> Object:
    """Just enough OpenAPI v3 for kubectl to leave validation to us: that patches take `fieldValidation`."""
    if not path:
        return {"paths": {"api/v1": {"serverRelativeURL": "/openapi/v3/api/v1"}}}
    parameters = [{"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}]
    paths = {
        f"/api/v1/{kind.plural}/{{name}}": {
            "patch": {
                "parameters": parameters,
                "responses": {},
                "x-kubernetes-group-version-kind": {"group": "", "version": "v1", "kind": kind.kind},
            }
        }
        for kind in KINDS.values()
    }
    return {"openapi": "3.0.0", "info": {"title": "demo", "version": VERSION}, "paths": paths}
