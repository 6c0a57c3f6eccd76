"""How long things are kept and how that is proven, while the recorder runs: sealer and pruner, as configured.

Both work beside what comes in and may fail without harm to it; their faults are in the log and in the metrics.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import structlog
from prometheus_client.metrics_core import Metric

from k8sproxy.common.tasks import Tasks
from recorder.config import Config
from recorder.config import Retention as Settings
from recorder.crypt import KeyFileError, Keyring, read_keys, stored
from recorder.model import Recording
from recorder.proof.actlog import ActLog
from recorder.proof.acts import Acts
from recorder.proof.keys import KeyFault, PublicKeys, Signer, read_public_key
from recorder.proof.places import same_volume
from recorder.proof.register import Register
from recorder.proof.report import Finding, Status
from recorder.proof.sealer import Sealer
from recorder.proof.standing import Standings
from recorder.proof.witness import FolderWitness, Witness, Witnesses
from recorder.retention.holds import Hold, Holds, Match
from recorder.retention.pruner import Pruner
from recorder.retention.rules import Rule, Rules
from recorder.store.blobs import Blobs
from recorder.store.store import Store
from recorder.telemetry import counter, gauge

_log = structlog.get_logger(__name__)

# Folders of a store in which anything was ever kept.
_KEPT = ("recordings", "events", "looks", "holds", "proof")


class KeepingError(Exception):
    """A key that cannot be used. The message is for the operator."""


def keyring(config: Config) -> Keyring | None:
    """The keys to encrypt with, None where nothing is encrypted. Raises KeepingError."""
    if not config.encryption.keys:
        return None
    try:
        return read_keys(config.encryption.keys)
    except KeyFileError as error:
        raise KeepingError(f"encryption.keys: {error}") from None


def signer(config: Config) -> Signer | None:
    """The key to sign with; None where nothing is signed. Raises KeepingError, also where it is not there."""
    if config.proof.key is None:
        return None
    try:
        return Signer.load(config.proof.key)
    except KeyFault as error:
        raise KeepingError(f"proof.key: {error}") from None


async def first_key(config: Config, blobs: Blobs) -> Signer | None:
    """The same, and a new one at the first start: on a store in which nothing was ever kept, with an anchor that
    remembers nothing. Raises KeepingError, StoreError."""
    path = config.proof.key
    if path is None or os.path.lexists(path):
        return signer(config)
    raw = stored(blobs)
    for top in _KEPT:
        if [name async for name, _ in raw.names(top)]:
            raise KeepingError(
                f"proof.key: {path} does not exist, but the store is not empty. The recorder does not replace a lost "
                "key: restore the file, or see docs/recorder-proof.md on a key that is lost"
            )
    anchors = Witnesses(witnesses(config, blobs))
    try:
        if await anchors.recall():
            raise KeepingError(f"proof.key: {path} does not exist, and the anchor remembers what was signed with it")
        return Signer.make_file(path)
    except KeyFault as error:
        raise KeepingError(f"proof.key: {error}") from None
    finally:
        await anchors.aclose()


def previous_key(config: Config) -> Signer | None:
    """The key that hands over. Raises KeepingError."""
    if config.proof.previous_key is None:
        return None
    try:
        return Signer.load(config.proof.previous_key)
    except KeyFault as error:
        raise KeepingError(f"proof.previousKey: {error}") from None


def witnesses(config: Config, blobs: Blobs) -> list[Witness]:
    """Where it is remembered how far the chains had come. blobs: of the store. Raises KeepingError."""
    proof = config.proof
    found: list[Witness] = []
    if proof.anchor.folder is not None:
        found.append(FolderWitness(proof.anchor.folder, old=proof.key.parent if proof.key is not None else None))
    if (settings := proof.anchor.config_map) is not None:
        from recorder.proof.configmap import ConfigMapWitness

        found.append(
            ConfigMapWitness(
                settings.name, settings.namespace or "", account=settings.account, server=settings.server or ""
            )
        )
    if proof.key is not None and not found:
        found.append(FolderWitness(proof.key.parent / "anchor", old=proof.key.parent))
    if (stamps := proof.anchor.time_stamps) is not None:
        from recorder.proof.timestamps import TimeStampWitness, read_certificates

        try:
            found.append(TimeStampWitness(stored(blobs), stamps.url, read_certificates(stamps.certificates)))
        except KeyFault as error:
            raise KeepingError(f"proof.anchor.timeStamps.certificates: {error}") from None
    return found


def public_keys(config: Config, own: Signer | None) -> PublicKeys:
    """The keys to believe: one's own, and those of before. Raises KeepingError."""
    try:
        keys = [read_public_key(path) for path in config.proof.public_keys]
    except KeyFault as error:
        raise KeepingError(f"proof.publicKeys: {error}") from None
    if (previous := previous_key(config)) is not None:
        keys.append(previous.public_key)
    return PublicKeys([*keys, *([own.public_key] if own is not None else [])], own.id if own is not None else "")


def rules(settings: Settings) -> Rules:
    """What the configuration says of keeping."""
    return Rules(
        max_age=settings.max_age,
        max_bytes=settings.max_bytes,
        events_max_age=settings.events_max_age,
        rules=tuple(
            Rule(
                Match(rule.match.clusters, rule.match.namespaces, rule.match.users, rule.match.session_types),
                rule.keep,
            )
            for rule in settings.rules
        ),
    )


class Keeping:
    """Register, sealer and pruner of a running recorder. own: the key to sign with (`first_key`). log: of the acts,
    None where there are no keys. holds: of the store. Raises KeepingError."""

    def __init__(self, config: Config, store: Store, own: Signer | None) -> None:
        keys = public_keys(config, own)
        anchors = Witnesses(witnesses(config, store.blobs))
        # One log for all who sign: they take their numbers in turn, and see at once what the others have signed.
        log = ActLog(store.blobs, keys, own, witnesses=anchors) if len(keys) else None
        self.log = log
        self._store = store
        self._standings = Standings(stored(store.blobs), keys) if len(keys) else None
        self.holds = Holds(store.blobs, log)
        self.register: Register | None = None
        self.sealer: Sealer | None = None
        if own is not None:
            self.register = Register(
                store.blobs,
                own,
                name=config.store.instance,
                keys=keys,
                witnesses=anchors,
                previous=previous_key(config),
            )
            store.registrar = self.register
            if config.proof.seal_days:
                self.sealer = Sealer(store, own, keys=keys, acts=log, register=self.register, delay=config.proof.delay)
        self.pruner = Pruner(store, rules(config.retention), signer=own, keys=keys, log=log)
        folders = [witness.path for witness in anchors.all if isinstance(witness, FolderWitness)]
        self._anchor_beside = config.store.folder is not None and any(
            same_volume(path, config.store.folder) for path in folders
        )
        self._tasks = Tasks()
        in_file = config.index.url is None or config.index.url.startswith("sqlite:")
        self._bare_index = bool(config.encryption.keys) and config.index.enabled and in_file

    def open(self) -> None:
        """Begin to sign what comes in; before the store is opened, which may find something."""
        if self.register is not None:
            self.register.start()

    def start(self) -> None:
        """Begin, once the store is open."""
        work = {"pruner": self.pruner.run()} | ({"sealer": self.sealer.run()} if self.sealer is not None else {})
        for name, coroutine in work.items():
            self._tasks.start(coroutine, name)
        if self._anchor_beside:
            _log.warning(
                "anchor_beside_store",
                why="the anchor is on the store's own volume: a rollback of that volume takes both back",
            )
        if self.register is None:
            _log.info("not_sealed", why="there is no proof.key")
        if self._bare_index:
            _log.warning("index_not_encrypted", why="the index file holds the text of screens without encryption")

    async def aclose(self) -> None:
        """Stop; before the store is closed. What was begun is gone on with at the next start."""
        await self._tasks.aclose()

    def reload(self, config: Config) -> None:
        """Take over the rules; the keys need a restart."""
        self.pruner.rules = rules(config.retention)

    # What the web site tells of it: see recorder/web/kept.py.

    @property
    def fault(self) -> str | None:
        """Why retention removes nothing, or not all."""
        return self.pruner.fault

    async def now(self) -> Sequence[Hold]:
        """All holds. Raises StoreError, KeyFault."""
        return await self.holds.now()

    async def acts(self) -> Acts:
        """All acts. Raises StoreError, KeyFault."""
        return await self.log.read() if self.log is not None else Acts()

    async def standing(self, recording: Recording) -> Finding | None:
        """Whether a recording is signed, by the signed lists; None where nothing is signed, or that cannot be told.
        Raises StoreError."""
        if self._standings is None:
            return None
        if recording.id in self._store.lives and recording.ended is not None:
            return Finding(recording.id, Status.UNSEALED, "it is on its way into the store, and not signed yet")
        return await self._standings.of(recording)

    def warnings(self) -> dict[str, str | None]:
        """What somebody has to look at, and what keeps nobody from sending: name -> what is wrong, None if nothing."""
        signing = self.register.healthy if self.register is not None else None
        return {
            "retention": self.pruner.fault,
            "signing": signing,
            "sealing": self.sealer.fault if self.sealer is not None else None,
        }

    def metrics(self) -> Iterator[Metric]:
        """For /metrics."""
        yield counter("recorder_removed", "Recordings and days of events removed.", self.pruner.removed)
        yield gauge("recorder_retention_healthy", "1 while old recordings can be removed.", self.pruner.fault is None)
        mismatches = len(self.pruner.mismatches)
        yield gauge("recorder_proof_mismatches", "What retention found to differ from what was sealed.", mismatches)
        if self.register is not None:
            yield counter("recorder_register_entries", "Entries of the register signed.", self.register.signed)
            yield gauge(
                "recorder_signing_healthy",
                "1 while new recordings and events are signed, and the anchor matches the store.",
                self.register.healthy is None,
            )
        if self.sealer is not None:
            yield counter("recorder_days_sealed", "Manifests of days signed.", self.sealer.sealed)
            yield gauge("recorder_sealing_healthy", "1 while days can be sealed.", self.sealer.fault is None)
