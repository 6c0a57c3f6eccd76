"""What is kept: recordings and API events, safe before anybody is told so.

api        what the rest of the recorder may ask            store      the whole, composed of the parts below
live       a recording on its way: who may do what, when    text       where its bytes are, until they are in chunks
journal    group commit: one sync for all of them           builder    tails to frames to chunks, in the background
eventlog   API events                                       recovery   after a crash
contents   what there is, for readers                       reading    back to lines, by ranges
ledger     what is known of the contents; see below         pressure   how much is in memory, and who waits
chunk, linechunks, records, manifest    the formats (pure)
blobs, tree, objects, logs              folder and object store

Each part calls only what is below it, and a contract of the project holds it to that:

    store -> {contents, recovery} -> {builder, eventlog} -> live -> journal -> ledger -> {text, pressure}

Before there was a ledger, the store handed each part the functions that the part was to call: when a recording had
begun, had grown, had ended, was dropped, was damaged or had gone; when an event was safe; what runs; which segments are
needed; how to sign. There were twenty-two of them. A live recording called upward into the builder, through the store,
and some functions were exchanged for others while the store opened. Who changes what was to be seen nowhere. Now what
is known stands in one place: a part writes down what it has done and reads what others have, and one list of observers
is told.
"""

from recorder.store.api import Reading, Writer
from recorder.store.errors import DamagedError, StoreError
from recorder.store.store import Store

__all__ = ["DamagedError", "Reading", "Store", "StoreError", "Writer"]
