"""The store that a configuration describes: a folder or an object store, in envelopes where there is a key.

`recorder serve` opens it with its journal; commands open it to read, beside a recorder that may be running.
"""

from __future__ import annotations

from k8sproxy.common.errors import StartError
from recorder.config import Config
from recorder.crypt import EncryptedBlobs, EncryptedLog
from recorder.retention.service import KeepingError, keyring
from recorder.store import Store, StoreError
from recorder.store.blobs import Blobs, FolderBlobs, make_folder
from recorder.store.logs import FolderLog, Log, ObjectLog
from recorder.telemetry import Histogram


def open_store(config: Config, *, read_only: bool = False, commits: Histogram | None = None) -> Store:
    """The configured store, not opened yet. Raises StartError."""
    settings = config.store
    observe = (commits or Histogram()).observe
    blobs: Blobs
    log: Log | None
    try:
        if settings.folder is not None:
            if not read_only:
                make_folder(settings.folder)
            blobs = FolderBlobs(settings.folder)
            log = None if read_only else FolderLog(settings.folder)
            return Store(*_encrypted(config, blobs, log), min_free=settings.min_free, commit_seconds=observe)
        from recorder.store.objects import open_objects

        options = dict(settings.options)
        for name, file in settings.option_files.items():
            options[name] = file.read_text().strip()
        blobs = open_objects(settings.url or "", options)
        log = None if read_only else ObjectLog(blobs, settings.instance)
        return Store(*_encrypted(config, blobs, log), min_free=0, commit_seconds=observe, instance=settings.instance)
    except ImportError:
        raise StartError("store.url needs the package obstore: pip install 'k8sproxy[recorder]'") from None
    except StoreError as error:
        raise StartError(f"store: {error}") from error
    except OSError as error:
        raise StartError(f"store: {error.strerror}: {error.filename}") from None


def _encrypted(config: Config, blobs: Blobs, log: Log | None) -> tuple[Blobs, Log | None]:
    """The same in envelopes, where there is a key. The journal has its own, around its place in the store."""
    try:
        keys = keyring(config)
    except KeepingError as error:
        raise StartError(str(error)) from None
    return blobs if keys is None else EncryptedBlobs(blobs, keys), None if log is None else EncryptedLog(log, keys)
