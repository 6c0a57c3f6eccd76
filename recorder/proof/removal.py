"""A removal: written down and signed before the bytes go, so that nobody can say afterwards that it was one.

    1  proof/removals/SUBJECT.json is put
    2  the bytes go
    3  the next manifest lists it
    4  the file goes

A crash between 1 and 2, or in the middle of 2, leaves a file whose bytes are still there: `unfinished` finds those, and
whoever removes goes on with them first. Without a key nothing is written down, and there is only step 2.

What is held after step 1, and still whole, is not removed: the removal is taken back, or it would explain whatever
became of the recording later.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from recorder.crypt import stored
from recorder.model import End
from recorder.proof.chain import read_removals
from recorder.proof.documents import Removal, is_day, removal_file, write_removal
from recorder.proof.keys import PublicKeys, Signer
from recorder.store.blobs import Blobs
from recorder.store.errors import StoreError
from recorder.store.manifest import MANIFEST, folder
from recorder.store.store import Store


async def remove_recording(
    store: Store, signer: Signer | None, removal: Removal, held: Callable[[], Awaitable[bool]]
) -> bool:
    """Write it down, then remove a recording that is over. held: whether it must stay; asked before and after it was
    written down, which may take a while. False where it stays. Raises KeyError, StoreError."""
    if removal.subject in store.lives:
        raise StoreError("the recording is not over yet")
    if not await has_bytes(stored(store.blobs), removal.subject):
        raise KeyError(removal.subject)
    if (await store.get(removal.subject)).end is End.RUNNING:  # at another recorder that shares the store
        raise StoreError("the recording is not over yet")
    if await held():
        return False
    await _write_down(store.blobs, signer, removal)
    if await held():
        await take_back(store.blobs, removal.subject)
        return False
    await finish(store, removal.subject)
    return True


async def remove_events(store: Store, signer: Signer | None, removal: Removal) -> None:
    """Write it down, then remove the chunks of events of one day. Raises StoreError."""
    await _write_down(store.blobs, signer, removal)
    await finish(store, removal.subject)


async def _write_down(blobs: Blobs, signer: Signer | None, removal: Removal) -> None:
    if signer is not None:
        await stored(blobs).put(removal_file(removal.subject), write_removal(removal, signer))


async def take_back(blobs: Blobs, subject: str) -> None:
    """It is not going to be removed after all. Raises StoreError."""
    await stored(blobs).delete([removal_file(subject)])


async def finish(store: Store, subject: str) -> None:
    """Remove the bytes of a removal that is written down. Raises StoreError."""
    prefix = subject_folder(subject)
    if not subject.startswith("events "):
        try:
            # The store's own way: its journal must not bring it back, and its observers are told.
            await store.remove(subject)
        except KeyError:  # a crash left only parts of it, which are no recording any more
            for observer in store.observers:
                observer.removed(subject)
    raw = stored(store.blobs)
    names = [name async for name, _ in raw.names(prefix) if not name.endswith("/")]
    names.sort(key=lambda name: name != MANIFEST)
    await raw.delete([f"{prefix}/{name}" for name in names])


async def unfinished(blobs: Blobs, keys: PublicKeys) -> list[Removal]:
    """Removals that are written down and not done. Raises StoreError."""
    raw = stored(blobs)
    removals, _ = await read_removals(raw, keys)
    return [removal for removal in removals.values() if await has_bytes(raw, removal.subject)]


async def has_bytes(raw: Blobs, subject: str) -> bool:
    """Whether something of it is there. Raises StoreError, ValueError for no subject."""
    return bool([name async for name, _ in raw.names(subject_folder(subject))])


def subject_folder(subject: str) -> str:
    """Where the bytes of a removal's subject are. Raises ValueError for what is none."""
    kind, _, day = subject.partition(" ")
    if kind == "events" and is_day(day):
        return f"events/{day}"
    return folder(subject)
