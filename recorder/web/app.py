"""The application: routes put together."""

from __future__ import annotations

import time
from collections.abc import Callable

from aiohttp import web

from k8sproxy.common.errors import Refusal
from recorder.store import Reading
from recorder.web import api, pages
from recorder.web.archive import Archive
from recorder.web.guard import API, STATIC, add_headers, guard
from recorder.web.kept import Keeps
from recorder.web.render import Renderer
from recorder.web.routes import BASE
from recorder.web.site import SITE, Find, Site, WebConfig

# Bytes of a request's body. Nothing here has one.
_MAX_BODY = 1024


def make_app(
    store: Reading,
    index: Archive,
    find: Find,
    config: WebConfig,
    *,
    keeps: Keeps | None = None,
    clock: Callable[[], float] = time.time,
) -> web.Application:
    """The site, to be served on a listener of its own. find: see `whois_finder`. keeps: what holds and acts are told
    of. clock: unix seconds."""
    app = web.Application(middlewares=[guard(_answer)], client_max_size=_MAX_BODY)
    app[SITE] = Site(store, index, find, config, keeps=keeps, clock=clock)
    app[pages.RENDERER] = Renderer(config.title)
    app.on_response_prepare.append(add_headers)
    for route in api.ROUTES:
        app.router.add_get(BASE + route.path, route.handler, name=f"api-{route.name}")
    app.router.add_get("/", pages.start)
    app.router.add_get("/sessions", pages.sessions)
    app.router.add_get("/sessions/{id}", pages.session)
    app.router.add_get("/events", pages.events)
    app.router.add_get("/events/{id}", pages.event)
    app.router.add_get("/looks", pages.looks)
    app.router.add_get("/holds", pages.holds)
    app.router.add_get("/about", pages.about)
    app.router.add_get(f"{STATIC}{{name:.+}}", pages.asset)
    return app


def _answer(request: web.Request, refusal: Refusal) -> web.Response:
    return api.problem(refusal) if request.path.startswith(API) else pages.refusal_page(request, refusal)
