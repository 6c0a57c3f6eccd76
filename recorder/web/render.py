"""Templates and what is in them: every value is made visible (see `words`) and escaped, whoever writes the template."""

from __future__ import annotations

import gzip
import hashlib
import json
import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any
from urllib.parse import urlencode

import jinja2
from aiohttp import web
from markupsafe import Markup

from recorder.web import words
from recorder.web.guard import PAGE_POLICY, PLAYER_POLICY, STATIC

_MOST = 100_000  # characters of what is shown as a whole: a document, a filter's value


@dataclass(frozen=True, slots=True)
class Asset:
    """A file that pages load. tag: of its contents."""

    body: bytes
    packed: bytes
    content_type: str
    tag: str


def _files(folder: Traversable, prefix: str = "") -> dict[str, Traversable]:
    found: dict[str, Traversable] = {}
    for entry in folder.iterdir():
        if entry.is_dir():
            found.update(_files(entry, f"{prefix}{entry.name}/"))
        else:
            found[prefix + entry.name] = entry
    return found


class Renderer:
    """Made once: templates compiled on first use, assets in memory."""

    def __init__(self, title: str) -> None:
        package = resources.files("recorder.web")
        self._templates = _files(package / "templates")
        self.assets = {name: _asset(name, file.read_bytes()) for name, file in _files(package / "static").items()}
        self._environment = jinja2.Environment(
            loader=jinja2.FunctionLoader(self._load),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            finalize=_finalize,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.globals.update(title=title, static=self._static, query=query_string)
        self._environment.filters.update(
            clock=words.clock,
            instant=words.instant,
            length=words.length,
            size=words.size,
            ago=words.ago,
            utc=lambda seconds: words.utc(seconds).strftime("%Y-%m-%d %H:%M:%S"),
            minute=lambda seconds: words.utc(seconds).strftime("%Y-%m-%d %H:%M"),
            rfc3339=words.rfc3339,
            day=lambda seconds: words.utc(seconds).strftime("%a %d %b %Y"),
            short_day=lambda seconds: words.utc(seconds).strftime("%d %b").lstrip("0"),
            document=_document,
            whole=lambda text: Markup.escape(words.visible(str(text), _MOST)),
        )

    def page(self, name: str, values: Mapping[str, Any], *, status: int = 200, player: bool = False) -> web.Response:
        """An answer with a page. player: whether the page has one, and so needs the wider policy."""
        text = self._environment.get_template(name).render(values)
        policy = PLAYER_POLICY if player else PAGE_POLICY
        return web.Response(
            text=text,
            status=status,
            content_type="text/html",
            charset="utf-8",
            headers={"Content-Security-Policy": policy, "Vary": "Cookie"},
        )

    def asset(self, request: web.Request, name: str) -> web.Response:
        """An answer with a file; `v` in the query is its tag, so it may be kept for ever."""
        asset = self.assets.get(name)
        if asset is None:
            raise web.HTTPNotFound
        kept = "private, max-age=31536000, immutable" if request.query.get("v") == asset.tag else "no-cache"
        headers = {"Cache-Control": kept, "ETag": f'"{asset.tag}"', "Vary": "Accept-Encoding"}
        if f'"{asset.tag}"' in request.headers.get("If-None-Match", ""):
            return web.Response(status=304, headers=headers)
        body = asset.body
        if "gzip" in request.headers.get("Accept-Encoding", ""):
            body = asset.packed
            headers["Content-Encoding"] = "gzip"
        return web.Response(body=body, headers=headers | {"Content-Type": asset.content_type})

    def _static(self, name: str) -> str:
        return f"{STATIC}{name}?v={self.assets[name].tag}"

    def _load(self, name: str) -> str | None:
        file = self._templates.get(name)
        return file.read_text("utf-8") if file is not None else None


def query_string(values: Mapping[str, Any], **changed: Any) -> Markup:
    """The part of an address from `?` on, with some values changed; None takes one out."""
    merged = {name: value for name, value in (dict(values) | changed).items() if value not in (None, "")}
    return Markup.escape(f"?{urlencode(merged)}" if merged else "?")


def _finalize(value: Any) -> Any:
    # Markup is what the templates themselves made; everything else may hold what a session showed.
    return words.visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _document(value: Any) -> Markup:
    """JSON values as text of many lines, each made visible. A body's base64 may be long; the JSON API has all of it."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return Markup("\n").join(Markup.escape(words.visible(line, _MOST)) for line in text[:_MOST].split("\n"))


def _asset(name: str, body: bytes) -> Asset:
    kind = mimetypes.guess_type(name)[0] or "text/plain"
    if kind.startswith("text/") or kind.endswith("javascript"):
        kind += "; charset=utf-8"
    return Asset(body, gzip.compress(body, 9, mtime=0), kind, hashlib.sha256(body).hexdigest()[:16])
