"""The tables, and how an older index becomes the present one.

Migrations are numbered from 1 and never change once released; a new version of the recorder appends. They run at open,
all in one transaction under a lock, so that of two recorders that start at once one migrates and the other finds it
done. An index that a newer recorder has made is refused: what it holds may mean something else.

A row's `number` is when it began (recordings) or came (events, looks), in microseconds since 1970, moved up by one
where it is taken. It is the order of all answers and the place that a cursor holds, and full text is kept under it.
"""

from __future__ import annotations

from recorder.index.database import Dialect, IndexFailure

_FIRST = """
CREATE TABLE recordings (
    number {key} PRIMARY KEY,
    id {text} NOT NULL UNIQUE,
    user_name {text} NOT NULL,
    node {text} NOT NULL,
    tags {text} NOT NULL,
    cluster {text} NOT NULL,
    namespace {text} NOT NULL,
    pod {text} NOT NULL,
    container {text} NOT NULL,
    command {text} NOT NULL,
    session_type {text} NOT NULL,
    session_id {text} NOT NULL,
    started {real} NOT NULL,
    ended {real},
    duration {real} NOT NULL,
    size BIGINT NOT NULL,
    events BIGINT NOT NULL,
    state {text} NOT NULL,
    damaged INTEGER NOT NULL,
    indexed BIGINT NOT NULL,
    text_truncated INTEGER NOT NULL
);
CREATE TABLE recording_documents (number {key} PRIMARY KEY, header TEXT NOT NULL, source TEXT NOT NULL);
CREATE TABLE events (
    number {key} PRIMARY KEY,
    id {text} NOT NULL UNIQUE,
    user_name {text} NOT NULL,
    node {text} NOT NULL,
    tags {text} NOT NULL,
    cluster {text} NOT NULL,
    verb {text} NOT NULL,
    resource {text} NOT NULL,
    subresource {text} NOT NULL,
    api_group {text} NOT NULL,
    namespace {text} NOT NULL,
    name {text} NOT NULL,
    path {text} NOT NULL,
    method {text} NOT NULL,
    user_agent {text} NOT NULL,
    session_id {text} NOT NULL,
    sender {text} NOT NULL,
    received {real} NOT NULL
);
CREATE TABLE event_documents (number {key} PRIMARY KEY, document TEXT NOT NULL);
CREATE TABLE looks (
    number {key} PRIMARY KEY,
    id {text} NOT NULL UNIQUE,
    at {real} NOT NULL,
    kind {text} NOT NULL,
    recording {text} NOT NULL,
    user_name {text} NOT NULL,
    node {text} NOT NULL,
    tags {text} NOT NULL,
    address {text} NOT NULL,
    detail {text} NOT NULL
);
CREATE INDEX recordings_user ON recordings (user_name, number);
CREATE INDEX recordings_node ON recordings (node, number);
CREATE INDEX recordings_cluster ON recordings (cluster, namespace, number);
CREATE INDEX recordings_namespace ON recordings (namespace, number);
CREATE INDEX recordings_pod ON recordings (pod, number);
CREATE INDEX recordings_state ON recordings (state, number);
CREATE INDEX recordings_session ON recordings (session_id);
CREATE INDEX events_user ON events (user_name, number);
CREATE INDEX events_node ON events (node, number);
CREATE INDEX events_resource ON events (resource, number);
CREATE INDEX events_namespace ON events (namespace, number);
CREATE INDEX events_session ON events (session_id);
CREATE INDEX looks_recording ON looks (recording, number);
CREATE INDEX looks_user ON looks (user_name, number)
"""

# Full text. SQLite keeps one document a recording in an FTS5 table without content: the words of all its lines, which
# `segments` can give again when it has to be taken out. PostgreSQL's tsvector holds positions up to 16383 only, so
# there each segment has its own; without fastupdate, as nobody waits for a write here and everybody for a search.
_FIRST_SQLITE = """
CREATE TABLE segments (
    number INTEGER NOT NULL, place INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (number, place)
) WITHOUT ROWID;
CREATE VIRTUAL TABLE found USING fts5(
    words, content='', columnsize=0, prefix='3 5', tokenize="ascii tokenchars '_'"
)
"""
_FIRST_POSTGRES = """
CREATE TABLE segments (
    number BIGINT NOT NULL, place INTEGER NOT NULL, body BYTEA NOT NULL, words TSVECTOR NOT NULL,
    PRIMARY KEY (number, place)
);
CREATE INDEX segments_words ON segments USING gin (words) WITH (fastupdate = off)
"""

# Words are folded without accents, and what a terminal does not show is among them: texts are made again, from the
# store. What is not made yet is known (`indexed`).
_SECOND = """
ALTER TABLE recordings ADD COLUMN unseen INTEGER NOT NULL DEFAULT 0;
UPDATE recordings SET indexed = -1, text_truncated = 0;
DELETE FROM segments
"""
_SECOND_SQLITE = """
DROP TABLE found;
CREATE VIRTUAL TABLE found USING fts5(
    words, content='', columnsize=0, prefix='3 5', tokenize="ascii tokenchars '_'"
)
"""

# Whose text is not whole in the index: few, and asked for with every answer.
_THIRD = "CREATE INDEX recordings_unread ON recordings (state) WHERE indexed <> size AND text_truncated = 0"

# Numbers of what was taken out and may still stand in freed parts of the files; see `Database.wipe`.
_FOURTH = "CREATE TABLE leftovers (number {key} PRIMARY KEY)"

MIGRATIONS: tuple[tuple[str, str], ...] = (
    (_FIRST + ";" + _FIRST_SQLITE, _FIRST + ";" + _FIRST_POSTGRES),
    (_SECOND + ";" + _SECOND_SQLITE, _SECOND),
    (_THIRD, _THIRD),
    # What earlier versions took out is wiped once.
    (_FOURTH + ";INSERT INTO leftovers (number) VALUES (0)", _FOURTH),
)
VERSION = len(MIGRATIONS)
# What is made again by a rebuild; looks are not.
DERIVED = ("recordings", "recording_documents", "events", "event_documents", "segments")


def steps(dialect: Dialect, version: int) -> list[str]:
    """The statements from a version to the present one. Raises IndexFailure where it is from the future."""
    if version > VERSION:
        raise IndexFailure(
            f"the index was made by a newer recorder (its schema is {version}, this one knows {VERSION}):"
            " run that version, or give this one another index and rebuild it from the store",
            passing=False,
        )
    return [
        statement.strip().format(key=dialect.key, real=dialect.real, text=dialect.text)
        for step in MIGRATIONS[version:]
        for statement in step[dialect.glob != "GLOB"].split(";")
    ]
