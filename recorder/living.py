"""What can be known of a configuration only by asking: whether tailscaled answers, and whether the store works.

The store is asked for what a recorder does with it all day, with one object of a name of its own: write, read, delete.
So a bucket that is not there, rights that are missing, a disk that is nearly full and a wrong region show before a
session needs them. No journal is opened: a recorder may be running on the same store.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable

from k8sproxy.common.errors import Refusal, StartError
from k8sproxy.common.tailnet.localapi import LocalAPI
from recorder.config import Config
from recorder.opening import open_store
from recorder.store import StoreError

# Seconds for each question: an object store is asked again for some of them.
PATIENCE = 30.0


async def ask(config: Config) -> list[str]:
    """What is wrong, a sentence each."""
    faults = await asyncio.gather(_in_time("tailscaled", _daemon(config)), _in_time("store", _store(config)))
    return [fault for fault in faults if fault]


async def _in_time(name: str, question: Awaitable[str]) -> str:
    try:
        async with asyncio.timeout(PATIENCE):
            return await question
    except TimeoutError:
        return f"{name}: no answer within {PATIENCE:g} s"


async def _daemon(config: Config) -> str:
    localapi = LocalAPI(str(config.tailnet.socket))
    try:
        status = await localapi.status()
    except Refusal as refusal:
        return f"tailscaled: {refusal.message}"
    finally:
        await localapi.aclose()
    return "" if status.backend_state == "Running" else f"tailscaled is {status.backend_state}, not Running"


async def _store(config: Config) -> str:
    folder = config.store.folder
    if folder is not None and not folder.exists():
        return f"store: the folder {folder} is not there; `recorder serve` makes it, where it may"
    try:
        store = open_store(config, read_only=True)
    except StartError as error:
        return str(error)
    blobs = store.blobs
    name, data = f"check-{secrets.token_hex(8)}", secrets.token_bytes(16)
    try:
        free = await blobs.free()
        if free is not None and free < config.store.min_free:
            return f"store: {free >> 20} MiB are free, and store.minFree requires {config.store.min_free >> 20} MiB"
        await blobs.put(name, data)
        try:
            if await blobs.get(name) != data:
                return "store: it returns other bytes than were written"
        finally:
            await blobs.delete([name])
    except StoreError as error:
        return f"store: {error}"
    except KeyError:
        return "store: what was written is not there"
    finally:
        await blobs.aclose()
    return ""
