"""How the sections of the recorder's file fit together.

Each check gives (key, message) pairs and goes on, so that all of a file's faults are told at once. A check that asks
what a section does not say leaves a section alone that has a fault by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from k8sproxy.common.config.addresses import ListenAddress
from k8sproxy.common.config.faults import Key, dotted
from k8sproxy.common.config.loading import Sound
from recorder.config.models import Admin, Encryption, Index, Ingest, Proof, Store, Web
from recorder.proof.places import is_inside, read_mounts

_BESIDE = "is in store.folder (by its name, a link or a mount), where it would protect nothing: keep it elsewhere"

Found = Iterator[tuple[Key, str]]


def check(sound: Sound) -> Found:
    """All checks."""
    yield from _check_index(sound)
    yield from _check_places(sound)
    yield from _check_addresses(sound)


def _check_index(sound: Sound) -> Found:
    web, index, store = sound.section(Web, "web"), sound.section(Index, "index"), sound.section(Store, "store")
    if web is None or index is None or store is None or not (sound.is_whole("index") and sound.is_whole("store")):
        return
    if web.listen and (not index.enabled or (index.url is None and store.folder is None)):
        yield ("web", "listen"), "needs an index, and there is none: index.url"


def _check_places(sound: Sound) -> Found:
    """Keys and anchors in the folder that they are to protect."""
    store, proof = sound.section(Store, "store"), sound.section(Proof, "proof")
    encryption = sound.section(Encryption, "encryption")
    folder = store.folder if store is not None else None
    if folder is None:
        return
    files: list[tuple[Key, Path | None]] = []
    if proof is not None:
        stamps = proof.anchor.time_stamps
        files += [
            (("proof", "key"), proof.key),
            (("proof", "previousKey"), proof.previous_key),
            (("proof", "anchor", "folder"), proof.anchor.folder),
            (("proof", "anchor", "timeStamps", "certificates"), stamps.certificates if stamps is not None else None),
        ]
        files += _numbered(sound, ("proof", "publicKeys"), proof.public_keys)
    if encryption is not None:
        files += _numbered(sound, ("encryption", "keys"), encryption.keys)
    mounts = read_mounts()
    for key, path in files:
        if path is not None and is_inside(path, folder, mounts):
            yield key, _BESIDE


def _numbered(sound: Sound, key: Key, paths: tuple[Path, ...]) -> list[tuple[Key, Path | None]]:
    return [((*key, number), path) for number, path in sound.numbers(key, paths)]


def _check_addresses(sound: Sound) -> Found:
    """No two on one address."""
    admin, ingest, web = sound.section(Admin, "admin"), sound.section(Ingest, "ingest"), sound.section(Web, "web")
    taken: list[tuple[Key, ListenAddress]] = []
    if admin is not None and sound.is_whole("admin"):
        taken.append((("admin", "address"), admin.address))
    for name, section in (("ingest", ingest), ("web", web)):
        if section is None or not sound.is_whole(name, "listen"):
            continue
        for number, address in enumerate(section.listen):
            key: Key = (name, "listen", number)
            for other_key, other in taken:
                if address.overlaps(other):
                    yield key, f"is the address of {dotted(other_key)} too"
                    break
            taken.append((key, address))
