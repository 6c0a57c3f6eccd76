"""The proxy's process: the parts of a program (k8sproxy.common.program) and how they are made, replaced and closed.

The only place that knows all the parts, and it does nothing else. A change of the configuration file, or of the server
that a kubeconfig names, causes a reload as SIGHUP does. A reload makes an Assembly beside the one that runs; where that
fails, nothing has changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Mapping
from pathlib import Path

import structlog

from k8sproxy import __version__
from k8sproxy.admin import AdminSite
from k8sproxy.assembly import (
    Assembly,
    Tailnet,
    limits_of,
    set_event_settings,
    set_recording_limits,
)
from k8sproxy.audit.apievents import ApiEvents
from k8sproxy.audit.entry import Trail
from k8sproxy.audit.events import Events, EventSettings
from k8sproxy.audit.sinks import sinks_of
from k8sproxy.common import program
from k8sproxy.common.errors import Refusal, StartError
from k8sproxy.common.logs import configure_logging
from k8sproxy.common.longwork import LongWork
from k8sproxy.common.program import Life, Program
from k8sproxy.common.sockets import raise_file_limit
from k8sproxy.config import Config, dotted, load, warnings_of
from k8sproxy.dataplane.listener import Server
from k8sproxy.dataplane.shared import Shared
from k8sproxy.recording.recorders import Recorders
from k8sproxy.sessions.registry import Sessions
from k8sproxy.telemetry import RequestLog, Telemetry

_log = structlog.get_logger("k8sproxy")

# Seconds between two questions about the own node, whatever happens on the tailnet.
_OWN_NODE_SECONDS = 5.0


def run(path: Path, config: Config) -> int:
    """Serve until told to stop. Returns the exit code: 0 after a drain, 1 where the start failed."""
    return program.run(lambda: App(path, config), level=config.log.level, style=config.log.format)


class App(Program[Config]):
    """One running proxy. Made inside the loop."""

    def __init__(self, path: Path, config: Config) -> None:
        super().__init__(path, config, load)
        self._telemetry = Telemetry()
        self._telemetry.reloads = self.reloads
        self._tailnet = Tailnet(config)
        self._assembly: Assembly | None = None
        self._admin: AdminSite | None = None
        self._recorders = Recorders(self._dial)
        set_recording_limits(self._recorders, self._tailnet.dialer, config)
        self._sessions = Sessions(self._recorders)
        self._sessions.limit = config.limits.sessions_per_peer
        self._longwork = LongWork()
        queues = ApiEvents(
            self._recorders.post_events,
            self._recorders.probe_events,
            queue=config.events.queue,
            longwork=self._longwork,
        )
        self._events = Events(queues, EventSettings())
        set_event_settings(self._events, config)
        self._shared = Shared(
            whois=self._tailnet.whois,
            sessions=self._sessions,
            limits=limits_of(config),
            telemetry=self._telemetry,
            trail=Trail(self._events, sinks_of(self._telemetry, _request_log(config))),
            documents={},
            longwork=self._longwork,
        )
        self._server = Server(self._shared)

    async def start(self) -> Mapping[str, object]:
        """See Program."""
        files = raise_file_limit()
        if files < 2 * self.config.limits.connections:
            _log.warning("few_open_files", limit=files, needed=2 * self.config.limits.connections)
        _warn(self.config)
        self._tailnet.follow(addresses=False, certificate=False)
        assembly = Assembly(self.config, self._server, self._tailnet)
        try:
            await assembly.prepare()
            self._admin = await self._open_admin(self.config)
            assembly.take_over(None)
        except BaseException:
            await assembly.close()
            raise
        self._use(assembly)
        self.tasks.start(self._server.run_clock(), "clock")
        self.tasks.start(self.follow_file(self._moved_cluster), "configuration file")
        self.tasks.start(self._follow_own_node(), "own node")
        return {"version": __version__, "config": str(self.path), "admin": self._admin.address}

    def _use(self, assembly: Assembly) -> None:
        self._assembly = assembly
        self._telemetry.gauges = [assembly.metrics, self._sessions.metrics, self._events.metrics]
        documents = {}
        if assembly.ca_pem() is not None:
            documents["ca.pem"] = lambda: (b"application/x-pem-file", assembly.ca_pem() or b"")
        self._shared.documents = documents

    async def _dial(self, host: str, port: int) -> socket.socket:
        """A connection to a recorder, by the daemon that is used now."""
        return await self._tailnet.dialer(host, port)

    async def _follow_own_node(self) -> None:
        """Keep the name and id of the proxy's own node, which events are told with."""
        while True:
            bus = self._tailnet.whois.bus
            seen = bus.generation
            with contextlib.suppress(Refusal):
                status = await self._tailnet.localapi.status()
                self._events.settings.node_name, self._events.settings.node_id = status.name, status.stable_id
                await bus.wait_changed(seen)
            await asyncio.sleep(_OWN_NODE_SECONDS)

    async def _open_admin(self, config: Config) -> AdminSite:
        admin = AdminSite(
            self._shared,
            checks=self._checks,
            warnings=lambda: self._assembly.warnings() if self._assembly is not None else {},
            ca_pem=lambda: self._assembly.ca_pem() if self._assembly is not None else None,
            allow=config.admin.allow,
        )
        address = config.admin.address
        try:
            if address.unix is not None:
                await admin.start_unix(address.unix)
            elif address.tcp is not None:
                await admin.start_tcp(address.tcp.host, address.tcp.port)
        except OSError as error:
            raise StartError(f"admin: cannot listen on {address}: {error.strerror}") from error
        return admin

    async def _checks(self) -> dict[str, str | None]:
        checks: dict[str, str | None] = {"draining": "the proxy is shutting down" if self._shared.draining else None}
        if self._assembly is not None:
            checks |= await self._assembly.checks()
        return checks

    # -- reload

    async def replace(self, config: Config) -> Mapping[str, object]:
        """See Program."""
        old, old_tailnet, old_admin = self._assembly, self._tailnet, self._admin
        tailnet = old_tailnet if old_tailnet.same(config) else Tailnet(config)
        if tailnet is not old_tailnet:
            tailnet.follow(addresses=False, certificate=False)
        assembly = Assembly(config, self._server, tailnet)
        new_admin: AdminSite | None = None
        try:
            await assembly.prepare()
            if config.admin.address != self.config.admin.address:
                new_admin = await self._open_admin(config)
            if self.life is not Life.RUNNING:  # since the reload began: nothing is listened on any more
                raise StartError("the proxy is being stopped")
            assembly.take_over(old)
        except BaseException:
            await assembly.close()
            if new_admin is not None:
                await new_admin.close()
            if tailnet is not old_tailnet:
                await tailnet.close()
            raise
        # From here on nothing fails.
        _warn(config)
        configure_logging(config.log.level, config.log.format)
        self._shared.trail.sinks = sinks_of(self._telemetry, _request_log(config))
        self._shared.limits = assembly.limits
        set_recording_limits(self._recorders, tailnet.dialer, config)
        self._sessions.limit = config.limits.sessions_per_peer
        set_event_settings(self._events, config)
        tailnet.whois.ttl = config.tailnet.whois_ttl
        self._tailnet = tailnet
        self._shared.ask(tailnet.whois)
        if new_admin is not None:
            self._admin = new_admin
        elif self._admin is not None:
            self._admin.allow = frozenset(config.admin.allow)
        self._use(assembly)
        if old is not None:
            await old.close()
        if new_admin is not None and old_admin is not None:
            await old_admin.close()
        if tailnet is not old_tailnet:
            await old_tailnet.close()
        return {}

    def _moved_cluster(self) -> str | None:
        moved = self._assembly is not None and self._assembly.moved()
        return "a kubeconfig names another server" if moved else None

    # -- the end

    @property
    def grace(self) -> float:
        """See Program."""
        return self.config.shutdown.grace

    async def drain(self, grace: float) -> int:
        """See Program."""
        if self._assembly is not None:
            self._assembly.stop_listening()
        return await self._server.drain(grace)

    async def close(self) -> None:
        """See Program."""
        if self._admin is not None:
            await self._admin.close()
        await self.tasks.aclose()
        await self._events.queues.aclose()
        await self._sessions.aclose()
        await self._longwork.aclose()
        if self._assembly is not None:
            await self._assembly.close()
        await self._tailnet.close()


def _request_log(config: Config) -> RequestLog:
    """The lines of requests, as the configuration wants them."""
    wanted = config.log.requests and config.log.level in ("debug", "info")
    return RequestLog(config.log.format, enabled=wanted)


def _warn(config: Config) -> None:
    """Say what works and is a bad idea."""
    for key, message in warnings_of(config):
        _log.warning("configuration_warning", key=dotted(key), message=message)
