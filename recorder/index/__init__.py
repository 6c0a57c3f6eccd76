"""What was recorded, findable: rows, full text and API events, in SQLite or PostgreSQL.

The index holds nothing that counts. What it knows it was told by the store (as its observer) or read from it
(`catch_up`, `rebuild`). Who looked at what is in the store as well (recorder/book.py), and a rebuild carries it over.
So it may lag, be thrown away or be made again; it never holds up what is being recorded.

    filters   what may be asked                  words      text -> words, questions -> terms, snippets
    rows      what is answered                   where      filters and scopes -> SQL, on both dialects
    schema    tables, migrations                 sqlite, postgres   where the two differ
    questions the queries                        records    values -> statements
    intake    the observer: queue, texts         index      Index, the whole
    readable  what is needed of the store
    catchup   compared with the store, rebuilt   coverage   how much of the store it has
"""

from recorder.index.coverage import Coverage
from recorder.index.database import IndexFailure
from recorder.index.filters import EventFilter, Filter, LookFilter, Place, Scope
from recorder.index.index import Index
from recorder.index.rows import Bucket, EventRow, Hit, Look, Page, RecordingRow

__all__ = [
    "Bucket",
    "Coverage",
    "EventFilter",
    "EventRow",
    "Filter",
    "Hit",
    "Index",
    "IndexFailure",
    "Look",
    "LookFilter",
    "Page",
    "Place",
    "RecordingRow",
    "Scope",
]
