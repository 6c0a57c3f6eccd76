"""What is kept: recordings and API events, safe before anybody is told so.

api        what the rest of the recorder may ask            store      the whole, composed of the parts below
live       a recording on its way: where its bytes are      journal    group commit: one sync for all of them
builder    tails to frames to chunks, in the background     eventlog   API events
chunk, records, manifest    the formats (pure)              reading    back to lines, by ranges
blobs, tree, objects, logs  folder and object store         recovery   after a crash
"""

from recorder.store.api import Reading, Writer
from recorder.store.errors import DamagedError, StoreError
from recorder.store.store import Store

__all__ = ["DamagedError", "Reading", "Store", "StoreError", "Writer"]
