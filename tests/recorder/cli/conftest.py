"""A folder with three sessions, one of them hostile, and the command run on it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog
from click.testing import CliRunner, Result

from recorder.cli import cli
from tests.recorder.proof.sealed import Stage, header, run

HOSTILE = "\x1b]0;pwned\x07\x1b[31mred\u202e\x9b2J\n"


@dataclass
class Folder:
    """stage: the store; ids: ana's session in prod, bob's in test, the hostile one."""

    stage: Stage
    ids: list[str]
    invoke: Callable[..., Result]

    def __call__(self, *arguments: str, code: int = 0, **more: Any) -> Result:
        """Run the command on this store."""
        command, *rest = arguments
        result = self.invoke(cli, [command, "--store", str(self.stage.root), *rest], **more)
        assert result.exit_code == code, (result.output, result.stderr, result.exception)
        return result

    def json(self, *arguments: str, code: int = 0) -> Any:
        """The same, as JSON values."""
        return json.loads(self(*arguments, "--json", code=code).stdout)


def _line(cluster: str, user: str, command: str) -> bytes:
    kubernetes = {"Cluster": cluster, "Namespace": "shop", "PodName": "web-0", "SessionType": "exec"}
    return header(kubernetes=kubernetes, srcNodeUser=user, command=command)


async def make(root: Path) -> tuple[Stage, list[str]]:
    """See Folder."""
    stage = Stage(root)
    stage.signs = False  # until it has a key
    async with stage.store() as store:
        one = await stage.record(
            store,
            b'[0.5,"o","$ deploy the shop\\r\\n"]\n[2.0,"r","100x30"]\n[60.0,"o","\\u001b[32mdone\\u001b[0m\\r\\n"]\n',
            _line("prod", "ana@example.com", "bash"),
        )
        two = await stage.record(
            store, b'[1.0,"o","\xf4\x8f\xba\x80\xf4\x8f\xbb\xbfbytes"]\n', _line("test", "bob@example.com", "tar cf -")
        )
        three = await stage.record(
            store,
            b"".join(json.dumps([1.0, "o", text]).encode() + b"\n" for text in (HOSTILE, "findme " + HOSTILE)),
            header(command=HOSTILE, srcNodeUser=HOSTILE, kubernetes={"PodName": HOSTILE, "SessionType": "exec"}),
        )
        await stage.settled(store)
    return stage, [one, two, three]


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    """A command sets up the log as it needs it; the next test has it as it was."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> tuple[Stage, list[str]]:
    """Made once; not to be changed."""
    return run(make(tmp_path_factory.mktemp("cli") / "store"))


@pytest.fixture
def folder(library: tuple[Stage, list[str]]) -> Folder:
    """To read from."""
    return Folder(library[0], library[1], CliRunner(env={"RECORDER_CONFIG": None, "RECORDER_URL": None}).invoke)


@pytest.fixture
def own(library: tuple[Stage, list[str]], tmp_path: Path) -> Folder:
    """A copy, to change."""
    return Folder(
        library[0].copy(tmp_path / "store"),
        library[1],
        CliRunner(env={"RECORDER_CONFIG": None, "RECORDER_URL": None}).invoke,
    )
