"""The process: start, reload, drain. The only place that knows all the parts, and it does nothing else.

SIGHUP, or a change of the configuration file (its contents, looked at every few seconds, because a ConfigMap is
swapped as a symbolic link), reads the file again. A bad file, or a good one that cannot be put into force, is said in
the log and changes nothing. SIGTERM and SIGINT drain: accept nothing more, let requests end within the grace time, end
watches at their next event, then close; a second signal closes at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import signal
import socket
from pathlib import Path

import structlog
import uvloop

from k8sproxy import __version__
from k8sproxy.admin import AdminSite
from k8sproxy.assembly import (
    Assembly,
    StartError,
    Tailnet,
    limits_of,
    set_event_settings,
    set_recording_limits,
)
from k8sproxy.audit.apievents import ApiEvents
from k8sproxy.audit.entry import Trail
from k8sproxy.audit.events import Events, EventSettings
from k8sproxy.audit.sinks import sinks_of
from k8sproxy.common.errors import Refusal
from k8sproxy.common.logs import LOG, configure_logging
from k8sproxy.common.longwork import LongWork
from k8sproxy.common.sockets import raise_file_limit
from k8sproxy.common.tasks import Tasks, beside
from k8sproxy.config import Config, ConfigError, dotted, load, warnings_of
from k8sproxy.dataplane.listener import Server
from k8sproxy.dataplane.shared import Shared
from k8sproxy.recording.recorders import Recorders
from k8sproxy.sessions.registry import Sessions
from k8sproxy.telemetry import RequestLog, Telemetry

_log = structlog.get_logger("k8sproxy")

# Seconds between looks at the configuration file. Kubelet itself takes up to a minute to bring a changed ConfigMap.
_LOOK_SECONDS = 2.0
# Seconds between two questions about the own node, whatever happens on the tailnet.
_OWN_NODE_SECONDS = 5.0


def run(path: Path, config: Config) -> int:
    """Serve until told to stop. Returns the exit code: 0 after a drain, 1 where the start failed."""
    configure_logging(config.log.level, config.log.format)
    LOG.start()
    # What is allocated until here stays for good; a full collection among thousands of connections is a long pause.
    gc.collect()
    gc.freeze()
    try:
        return uvloop.run(_serve(path, config))
    except KeyboardInterrupt:
        return 130
    finally:
        LOG.stop()


async def _serve(path: Path, config: Config) -> int:
    return await App(path, config).run()


class App:
    """One running proxy. Made inside the loop."""

    def __init__(self, path: Path, config: Config) -> None:
        self._path = path
        self._config = config
        self._telemetry = Telemetry()
        self._tailnet = Tailnet(config)
        self._assembly: Assembly | None = None
        self._admin: AdminSite | None = None
        self._tasks = Tasks()
        self._reload_lock = asyncio.Lock()
        self._seen = b""
        self._signals = 0
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()
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

    async def run(self) -> int:
        """Start, serve, drain. Returns the exit code."""
        self._seen = _digest(self._path)
        files = raise_file_limit()
        if files < 2 * self._config.limits.connections:
            _log.warning("few_open_files", limit=files, needed=2 * self._config.limits.connections)
        _warn(self._config)
        loop = asyncio.get_running_loop()
        # Already now: a start may wait for a plugin or for the daemon, and the first process of a container gets no
        # signal that it does not handle.
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._terminate)
        loop.add_signal_handler(signal.SIGHUP, lambda: None)
        try:
            if not await self._start_unless_stopped():
                _log.info("stopped", cut=0)
                await self._tailnet.close()
                return 0
        except StartError as error:
            _log.error("start_failed", error=str(error))
            await self._tailnet.close()
            return 1
        loop.add_signal_handler(signal.SIGHUP, lambda: self._tasks.start(self.reload("SIGHUP"), "reload"))
        self._tasks.start(self._server.run_clock(), "clock")
        self._tasks.start(self._follow_file(), "configuration file")
        self._tasks.start(self._follow_own_node(), "own node")
        _log.info(
            "started", version=__version__, config=str(self._path), admin=self._admin.address if self._admin else None
        )
        await self._stop.wait()
        await self._drain()
        return 0

    async def _start_unless_stopped(self) -> bool:
        """Start; whether it came to that before a signal to stop. Raises StartError."""
        async with beside(self._start(), "start") as start, beside(self._stop.wait(), "stop") as stop:
            await asyncio.wait((start, stop), return_when=asyncio.FIRST_COMPLETED)
            if start.done():
                start.result()
                return True
        return False

    async def _start(self) -> None:
        self._tailnet.follow(addresses=False, certificate=False)
        assembly = Assembly(self._config, self._server, self._tailnet)
        await assembly.prepare()
        try:
            self._admin = await self._open_admin(self._config)
            assembly.take_over(None)
        except BaseException:
            await assembly.close()
            if self._admin is not None:
                await self._admin.close()
            raise
        self._use(assembly)

    def _use(self, assembly: Assembly) -> None:
        self._assembly = assembly
        self._config = assembly.config
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

    async def reload(self, why: str) -> bool:
        """Read the file again and put it into force; whether that was done."""
        async with self._reload_lock:
            if self._stop.is_set():
                return False
            self._seen = _digest(self._path)
            try:
                config = await asyncio.to_thread(load, self._path)
                await self._replace(config)
            except ConfigError as error:
                self._telemetry.reloads["refused"] += 1
                _log.error("reload_refused", why=why, faults=[str(fault) for fault in error.faults])
                return False
            except StartError as error:
                self._telemetry.reloads["refused"] += 1
                _log.error("reload_refused", why=why, faults=[str(error)])
                return False
            self._telemetry.reloads["ok"] += 1
            _log.info("reloaded", why=why)
            return True

    async def _replace(self, config: Config) -> None:
        old, old_tailnet, old_admin = self._assembly, self._tailnet, self._admin
        before = self._config
        tailnet = old_tailnet if old_tailnet.same(config) else Tailnet(config)
        if tailnet is not old_tailnet:
            tailnet.follow(addresses=False, certificate=False)
        assembly = Assembly(config, self._server, tailnet)
        new_admin: AdminSite | None = None
        try:
            await assembly.prepare()
            if config.admin.address != before.admin.address:
                new_admin = await self._open_admin(config)
            if self._stop.is_set():
                raise StartError(
                    "the proxy is being stopped"
                )  # since the reload began: nothing is listened on any more
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

    async def _follow_file(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            seen = await asyncio.to_thread(_digest, self._path)
            if seen and seen != self._seen:
                await self.reload("the file has changed")
            elif self._assembly is not None and self._assembly.moved():
                await self.reload("a kubeconfig names another server")

    # -- the end

    def _terminate(self) -> None:
        self._signals += 1
        self._stop.set()
        if self._signals > 1:
            self._stop_now.set()

    async def _drain(self) -> None:
        grace = self._config.shutdown.grace
        _log.info("draining", grace=grace)
        if self._assembly is not None:
            self._assembly.stop_listening()
        async with beside(self._server.drain(grace), "drain") as drain, beside(self._stop_now.wait(), "hurry") as hurry:
            await asyncio.wait((drain, hurry), return_when=asyncio.FIRST_COMPLETED)
        cut = await self._server.drain(0.0) if drain.cancelled() else drain.result()
        if self._admin is not None:
            await self._admin.close()
        await self._tasks.aclose()
        await self._events.queues.aclose()
        await self._sessions.aclose()
        await self._longwork.aclose()
        if self._assembly is not None:
            await self._assembly.close()
        await self._tailnet.close()
        _log.info("stopped", cut=cut)


def _request_log(config: Config) -> RequestLog:
    """The lines of requests, as the configuration wants them."""
    wanted = config.log.requests and config.log.level in ("debug", "info")
    return RequestLog(config.log.format, enabled=wanted)


def _digest(path: Path) -> bytes:
    """What the file is now, empty where it can't be read (as in the middle of a replacement)."""
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError:
        return b""


def _warn(config: Config) -> None:
    """Say what works and is a bad idea."""
    for key, message in warnings_of(config):
        _log.warning("configuration_warning", key=dotted(key), message=message)
