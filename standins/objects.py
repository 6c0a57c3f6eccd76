"""What the stand-in cluster holds: a few kinds, a few objects of each, and how `kubectl get` prints them.

Objects are plain JSON values. Every change gives the store's next resourceVersion and goes to every watch.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import datetime
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]
Cell = str | int


@dataclass(frozen=True)
class Column:
    """One column of a printed table. wide: only with `-o wide`. cell: the value out of an object."""

    name: str
    cell: Callable[[Object], Cell]
    wide: bool = False


@dataclass(frozen=True)
class Kind:
    """One resource of the core group: what discovery tells and how its objects are printed."""

    plural: str
    kind: str
    namespaced: bool
    short: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()
    subresources: tuple[tuple[str, str], ...] = ()  # (name, the kind it takes)


def _age(thing: Object) -> str:
    created = datetime.datetime.fromisoformat(thing["metadata"]["creationTimestamp"])
    seconds = int((datetime.datetime.now(datetime.UTC) - created).total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


_NAME = Column("Name", lambda thing: str(thing["metadata"]["name"]))
_AGE = Column("Age", _age)

KINDS: Mapping[str, Kind] = {
    kind.plural: kind
    for kind in (
        Kind(
            "namespaces", "Namespace", False, ("ns",), (_NAME, Column("Status", lambda ns: ns["status"]["phase"]), _AGE)
        ),
        Kind(
            "nodes",
            "Node",
            False,
            ("no",),
            (
                _NAME,
                Column("Status", lambda _: "Ready"),
                Column("Roles", lambda _: "<none>"),
                _AGE,
                Column("Version", lambda node: node["status"]["nodeInfo"]["kubeletVersion"]),
            ),
        ),
        Kind(
            "pods",
            "Pod",
            True,
            ("po",),
            (
                _NAME,
                Column("Ready", lambda pod: f"{len(pod['spec']['containers'])}/{len(pod['spec']['containers'])}"),
                Column("Status", lambda pod: pod["status"]["phase"]),
                Column("Restarts", lambda _: 0),
                _AGE,
                Column("Node", lambda pod: pod["spec"].get("nodeName", "<none>"), wide=True),
            ),
            (("log", "Pod"), ("exec", "PodExecOptions")),
        ),
        Kind(
            "configmaps", "ConfigMap", True, ("cm",), (_NAME, Column("Data", lambda cm: len(cm.get("data", ()))), _AGE)
        ),
        Kind("services", "Service", True, ("svc",), (_NAME, Column("Type", lambda svc: svc["spec"]["type"]), _AGE)),
        Kind("events", "Event", True, ("ev",), (_NAME, _AGE)),
    )
}


class Store:
    """The cluster's objects by (plural, namespace, name), and whoever watches them."""

    def __init__(self) -> None:
        self._objects: dict[tuple[str, str, str], Object] = {}
        self._history: list[tuple[int, str, str, Object]] = []
        self._watchers: set[asyncio.Queue[tuple[int, str, str, Object]]] = set()
        self.version = 0

    def get(self, plural: str, namespace: str, name: str) -> Object | None:
        return self._objects.get((plural, namespace, name))

    def list(self, plural: str, namespace: str) -> list[Object]:
        """Every object of this kind, in this namespace or, if it is empty, in all of them; by name."""
        return [
            thing
            for (kind, where, _), thing in sorted(self._objects.items())
            if kind == plural and namespace in ("", where)
        ]

    def put(self, plural: str, namespace: str, name: str, thing: Object) -> Object:
        """Creates or replaces an object, fills in what the API server would, and returns what is kept."""
        kind = KINDS[plural]
        old = self.get(plural, namespace, name)
        thing = {**copy.deepcopy(thing), "apiVersion": "v1", "kind": kind.kind}
        metadata = thing.setdefault("metadata", {})
        metadata["name"] = name
        if kind.namespaced:
            metadata["namespace"] = namespace
        made = old["metadata"] if old else {"uid": str(uuid.uuid4()), "creationTimestamp": _now()}
        metadata |= {key: made[key] for key in ("uid", "creationTimestamp")}
        if plural == "pods":  # nothing schedules here: a pod runs as soon as it is made
            thing.setdefault("spec", {}).setdefault("nodeName", "node-1")
            thing.setdefault("status", {"phase": "Running"})
        if plural == "namespaces":
            thing.setdefault("status", {"phase": "Active"})
        return self._record("MODIFIED" if old else "ADDED", plural, namespace, name, thing)

    def delete(self, plural: str, namespace: str, name: str) -> Object:
        """Removes an object that is there."""
        thing = self._objects[(plural, namespace, name)]
        self._record("DELETED", plural, namespace, name, copy.deepcopy(thing))
        del self._objects[(plural, namespace, name)]
        return thing

    @contextlib.contextmanager
    def watch(self, since: int) -> Iterator[asyncio.Queue[tuple[int, str, str, Object]]]:
        """Every change after resourceVersion `since`: (version, ADDED|MODIFIED|DELETED, plural, object)."""
        queue: asyncio.Queue[tuple[int, str, str, Object]] = asyncio.Queue()
        for change in self._history:
            if change[0] > since:
                queue.put_nowait(change)
        self._watchers.add(queue)
        try:
            yield queue
        finally:
            self._watchers.discard(queue)

    def _record(self, change: str, plural: str, namespace: str, name: str, thing: Object) -> Object:
        self.version += 1
        thing["metadata"]["resourceVersion"] = str(self.version)
        self._objects[(plural, namespace, name)] = thing
        self._history.append((self.version, change, plural, thing))
        for queue in self._watchers:
            queue.put_nowait(self._history[-1])
        return thing


def table(kind: Kind, things: list[Object], version: int, *, headers: bool = True) -> Object:
    """The meta.k8s.io/v1 Table of these objects, which `kubectl get` prints. headers: off after a watch's first."""
    definitions = [
        {"name": column.name, "type": "string", "format": "", "description": "", "priority": int(column.wide)}
        for column in kind.columns
    ]
    rows = [
        {
            "cells": [column.cell(thing) for column in kind.columns],
            "object": {
                "kind": "PartialObjectMetadata",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": thing["metadata"],
            },
        }
        for thing in things
    ]
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {"resourceVersion": str(version)},
        "columnDefinitions": definitions if headers else [],
        "rows": rows,
    }


def furnish(store: Store) -> None:
    """Fills an empty cluster with something to look at."""
    for namespace in ("default", "kube-system"):
        store.put("namespaces", "", namespace, {})
    store.put("nodes", "", "node-1", {"status": {"nodeInfo": {"kubeletVersion": "v1.37.0-demo"}}})
    for namespace, name, image in (
        ("default", "web", "demo/web:1"),
        ("default", "worker", "demo/worker:1"),
        ("kube-system", "dns", "demo/dns:1"),
    ):
        spec = {"containers": [{"name": name, "image": image}]}
        store.put("pods", namespace, name, {"metadata": {"labels": {"app": name}}, "spec": spec})
    store.put("configmaps", "default", "settings", {"data": {"colour": "blue", "replicas": "2"}})
    service = {"type": "ClusterIP", "selector": {"app": "web"}, "ports": [{"port": 80}]}
    store.put("services", "default", "web", {"spec": service})


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
