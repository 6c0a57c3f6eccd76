"""The commands on a folder: what they print, what they refuse, which exit codes they have."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from recorder.cli import cli
from recorder.cli.library import shortness
from recorder.cli.storelibrary import fits
from recorder.crypt import Keyring
from recorder.index.filters import Filter
from recorder.model import Recording, Source
from recorder.proof import Signer
from recorder.proof.witness import FolderWitness
from recorder.retention.pruner import Pruner
from recorder.retention.rules import Rules
from tests.recorder.cli.conftest import Folder
from tests.recorder.proof.sealed import Stage, header, run, statuses


def harmless(text: str) -> bool:
    return all(character == "\n" or character.isprintable() for character in text)


def test_ls(folder: Folder) -> None:
    lines = folder("ls").stdout.splitlines()
    assert lines[0].split() == ["ID", "STARTED", "LENGTH", "SIZE", "STATE", "WHO", "TYPE", "WHERE", "COMMAND"]
    assert [line.split()[0] for line in lines[1:]] == folder.ids[::-1]
    assert lines[3].split()[3:] == [
        "1",
        "min",
        "329",
        "B",
        "clean",
        "ana@example.com",
        "exec",
        "prod/shop/web-0",
        "bash",
    ]
    assert harmless("\n".join(lines)) and "\\u{1b}" in lines[1]


@pytest.mark.parametrize(
    ("options", "which"),
    [
        (["--user", "ana@*"], [0]),
        (["--cluster", "test"], [1]),
        (["--command", "cf"], [1]),
        (["--min-duration", "30"], [0]),
        (["--since", "2999-01-01"], []),
        (["--until", "2999-01-01", "--state", "clean", "--namespace", "shop"], [1, 0]),
        (["--limit", "1"], [2]),
        (["--type", "ssh"], []),
    ],
)
def test_ls_with_filters(folder: Folder, options: list[str], which: list[int]) -> None:
    found = folder.json("ls", *options, code=0 if which else 1)
    assert [session["id"] for session in found] == [folder.ids[number] for number in which]


def test_ls_without_a_match_says_no(folder: Folder) -> None:
    result = folder("ls", "--user", "nobody", code=1)
    assert result.stdout == "" and result.stderr == "no session matches\n"


def test_ls_refuses_a_filter_that_makes_no_sense(folder: Folder) -> None:
    assert "since must be a time" in folder("ls", "--since", "yesterday", code=2).stderr
    assert "--min-duration must be a number" in folder("ls", "--min-duration", "x", code=2).stderr


def test_search_without_an_index(folder: Folder) -> None:
    result = folder("search", "depl shop")
    assert result.stdout.startswith(folder.ids[0]) and "0:00  $ deploy the shop" in result.stdout
    (found,) = folder.json("search", '"findme"')
    assert found["id"] == folder.ids[2]
    assert harmless(folder("search", "findme").stdout)
    assert folder("search", "nowhere", code=1).stderr == "nothing was found\n"
    assert folder.json("search", "deploy", "--user", "bob@*", code=1) == []
    assert folder.json("search", "...", code=1) == []


@pytest.mark.parametrize("text", ["", "  ", " ".join(f"w{number}" for number in range(17)), "x" * 1001])
@pytest.mark.parametrize("place", [[], ["--url", "http://127.0.0.1:1"]])
def test_search_refuses_what_is_no_search(folder: Folder, text: str, place: list[str]) -> None:
    place = place or ["--store", str(folder.stage.root)]
    result = folder.invoke(cli, ["search", *place, text])
    assert result.exit_code == 2 and "Error: " in result.stderr


def test_search_finds_a_command_that_wrote_nothing(tmp_path: Path) -> None:
    async def make(stage: Stage) -> str:
        async with stage.store() as store:
            identifier = await stage.record(store, b"", header(command="rm -rf /data"))
            await stage.settled(store)
            return identifier

    stage = Stage(tmp_path / "store")
    folder = Folder(stage, [run(make(stage))], CliRunner(env={"RECORDER_CONFIG": None, "RECORDER_URL": None}).invoke)
    (found,) = folder.json("search", '"rm -rf"')
    assert found["id"] == folder.ids[0]
    folder("rebuild")
    assert folder.json("search", '"rm -rf"') == [found]  # as the index answers


def test_search_marks_what_was_found_unless_told_not_to(folder: Folder) -> None:
    assert "\x1b[1mdeploy" in folder("search", "deploy", color=True).stdout
    plain = folder("search", "deploy", color=True, env={"NO_COLOR": "1"}).stdout
    assert harmless(plain) and "deploy" in plain


def test_a_filter_of_stars_takes_no_time(folder: Folder) -> None:
    folder("ls", "--command", "*a" * 120 + "b" * 200, code=1)
    assert not fits_command("a" * 60_000, "*a" * 120 + "b")


def fits_command(command: str, wanted: str) -> bool:
    return fits(Recording("", {"command": command}, Source("", ""), 0.0), Filter(command=wanted))


def test_rebuild_then_search_by_the_index(own: Folder) -> None:
    assert own("rebuild").stdout == "indexed 3 sessions and 0 API events\n"
    assert own.json("rebuild") == {"sessions": 3, "events": 0}
    assert [session["id"] for session in own.json("search", "deploy")] == [own.ids[0]]
    assert own.json("show", own.ids[0])["related"] == []


@pytest.mark.parametrize("damage", ["no index", "a page", "a chunk"])
def test_rebuild_of_what_is_damaged(own: Folder, damage: str) -> None:
    """An index that is no index any more is what a rebuild is for, and a bad chunk costs no more than its own text."""
    index = own.stage.root / "index.db"
    own("rebuild")
    if damage == "no index":
        index.write_bytes(b"not a database at all, but long enough to be looked at" * 100)
    elif damage == "a page":  # any but the first
        data = bytearray(index.read_bytes())
        data[4096:] = b"\xff" * (len(data) - 4096)
        index.write_bytes(data)
    else:
        (chunk,) = own.stage.root.glob(f"recordings/*/{own.ids[2]}/*.chunk")
        chunk.write_bytes(bytes([chunk.read_bytes()[0] ^ 1]) + chunk.read_bytes()[1:])
    assert own("rebuild").stdout == "indexed 3 sessions and 0 API events\n"
    assert [session["id"] for session in own.json("search", "deploy")] == [own.ids[0]]
    assert index.with_name("index.db.damaged").exists() is (damage != "a chunk")


def test_show(folder: Folder) -> None:
    text = folder("show", folder.ids[0]).stdout
    assert "user        ana@example.com" in text and "length      1 min, 3 events" in text
    assert harmless(folder("show", folder.ids[2]).stdout)
    assert folder.json("show", folder.ids[0])["header"]["command"] == "bash"
    for wrong in ("x", "0" * 26, "\x1b[2J"):
        message = folder("show", wrong, code=1).stderr
        assert message.startswith("recorder: there is no session") and harmless(message)


def test_export(folder: Folder, tmp_path: Path) -> None:
    cast = folder("export", folder.ids[0]).stdout_bytes
    assert cast.count(b"\n") == 4 and json.loads(cast.split(b"\n")[0])["command"] == "bash"
    assert folder("export", folder.ids[0], "--format", "txt").stdout == "$ deploy the shop\ndone\n"
    assert len(folder("export", folder.ids[0], "--format", "json").stdout) > 100
    assert json.loads(folder("export", folder.ids[0], "--format", "json").stdout)["session"]["id"] == folder.ids[0]
    assert folder("export", folder.ids[1], "--raw").stdout_bytes == b"\x80\xffbytes"
    path = tmp_path / "a.cast"
    folder("export", folder.ids[0], "-o", str(path))
    assert path.read_bytes() == cast and path.stat().st_mode & 0o777 == 0o600
    assert "--force" in folder("export", folder.ids[0], "-o", str(path), code=1).stderr
    folder("export", folder.ids[1], "-o", str(path), "--force")
    assert path.read_bytes() != cast
    folder("export", "0" * 26, "-o", str(tmp_path / "b.cast"), code=1)
    assert [path.name for path in tmp_path.iterdir()] == ["a.cast"]


def test_play_wants_a_terminal(folder: Folder) -> None:
    assert "--raw" in folder("play", folder.ids[0], code=2).stderr
    result = folder("play", folder.ids[0], "--raw", "--speed", "64", "--idle-limit", "0.01")
    assert result.stdout_bytes == b"$ deploy the shop\r\n\x1b[32mdone\x1b[0m\r\n"


def test_play_from_the_middle(folder: Folder) -> None:
    # What led up to it is there at once.
    result = folder("play", folder.ids[0], "--raw", "--speed", "64", "--start", "60")
    assert b"deploy" in result.stdout_bytes


@pytest.fixture
def key(own: Folder, tmp_path: Path) -> str:
    path = tmp_path / "seal.pem"
    anchor = FolderWitness(tmp_path / "anchor")
    own.stage.signs = True
    own.stage.signer = Signer.make_file(path)
    run(own.stage.seal())
    for chain, head in own.stage.witness.heads.items():
        run(anchor.remember(chain, head))
    return str(path)


def test_verify(own: Folder, key: str) -> None:
    anchor = str(Path(key).with_name("anchor"))
    assert "keys to trust" in own("verify", code=2).stderr
    result = own("verify", "--public-key", f"{key}.pub")
    assert "3 signed late; " in result.stdout and result.stdout.endswith("all is well\n")
    assert own.json("verify", "--public-key", key)["counts"]["signed late"] == 3
    assert "not forgery" in own("verify", "--trust-store-keys").stderr
    own("verify", "--public-key", key, "--anchor", anchor)
    assert own("verify", own.ids[0], "--public-key", key).stdout.splitlines()[1].split()[:2] == [own.ids[0], "signed"]
    own("verify", "0" * 26, "--public-key", key, code=1)
    own("verify", "--day", "x", "--public-key", key, code=2)
    path = own.stage.place(own.ids[1]) / "00000000.chunk"
    path.write_bytes(path.read_bytes() + b"x")
    result = own("verify", "--public-key", key, code=1)
    assert f"{own.ids[1]}  changed" in result.stdout and "chunk 0 is not what was sealed" in result.stdout
    assert "NOT well: 1 recordings" in result.stdout
    assert own.json("verify", "--public-key", key, code=1)["well"] is False
    last = own.stage.manifests()[-1]
    last.unlink()
    assert "the end of the chain was removed" in own("verify", "--public-key", key, "--anchor", anchor, code=1).stderr
    assert (
        "the end of the chain was removed"
        in own("verify", "--public-key", key, "--anchor", f"{anchor}/manifests", code=1).stderr
    )


def test_prune_by_hand_and_holds(own: Folder, key: str) -> None:
    one, two, _three = own.ids
    assert "give the reason" in own("prune", one, "--key", key, code=2).stderr
    assert "removals need a key" in own("prune", one, "--reason", "x", code=2).stderr
    assert "holds and releases need a key" in own("prune", one, "--hold", "--reason", "x", code=2).stderr
    own("prune", one, "--hold", "--reason", "case \x1b[2J7", "--by", "Ana\x1b[2J Ruiz", "--key", key)
    shown = own("show", one).stdout
    assert "held        by Ana" in shown and "case \\u{1b}" in shown and harmless(shown)
    assert own.json("show", two)["holds"] == []
    listed = own("prune", "--holds", "--key", key).stdout
    assert one in listed and "Ruiz (" in listed and harmless(listed)
    assert "release it first" in own("prune", one, "--key", key, "--reason", "x", "--yes", code=1).stderr
    (matching,) = own.json(
        *("prune", "--hold-matching", "user=bob@*", "--hold-matching", "cluster=test", "--reason", "y", "--key", key)
    )
    assert matching["signed"] is True
    own("prune", two, "--key", key, "--reason", "x", "--yes", code=1)
    assert "does not count" in own("prune", matching["id"], "--release", "--unsigned", code=1).stderr
    own("prune", matching["id"], "--release", "--key", key, "--reason", "closed")
    assert own("prune", two, "--key", key, "--reason", "x", input="n\n", code=1)
    assert own.stage.place(two).exists()
    assert "removed 1" in own("prune", two, "--key", key, "--reason", "by \x1b wish", "--yes").stdout
    assert not own.stage.place(two).exists()
    found = {finding["id"]: finding for finding in own.json("verify", "--public-key", key)["findings"]}
    assert found[two]["status"] == "removed" and "by \x1b wish" in found[two]["detail"]
    own("prune", one, "--release", "--key", key)
    own("prune", one, "--release", "--key", key, code=1)
    own("prune", "0" * 26, "--hold", "--reason", "x", "--key", key, code=1)
    own("prune", one, "--hold-matching", "planet=x", "--reason", "x", code=2)
    told = own("prune", "--acts", "--key", key).stdout
    assert [line.split()[2] for line in told.splitlines()[1:]] == ["hold", "hold", "release", "removal", "release"]
    assert harmless(told) and "by \\u{1b} wish" in told
    acts = own.json("prune", "--acts", "--key", key)
    assert [act["number"] for act in acts["items"]] == [1, 2, 3, 4, 5] and acts["faults"] == []
    report = own("verify", "--public-key", key).stdout
    assert "acts: 5 signed: 2 releases, 1 removals, 0 reversals; 0 holds active" in report


def test_holds_without_a_key(own: Folder, key: str) -> None:
    one, two, _three = own.ids
    (hold,) = own.json("prune", one, "--hold", "--reason", "x", "--unsigned")
    assert hold["signed"] is False and hold["recording"] == one
    result = own("prune", "--holds")
    assert " NO " in result.stdout and "the store's own keys" in result.stderr
    own("prune", one, "--hold", "--reason", "y", "--unsigned")
    assert "has 2 holds" in own("prune", one, "--release", "--unsigned", code=1).stderr
    own("prune", hold["id"], "--release", "--unsigned")
    (left,) = own.json("prune", "--holds")
    own("prune", two, "--hold", "--reason", "z", "--key", key)
    # It may be released by whoever has the key, and then for good.
    file = own.stage.root / f"holds/{left['id']}.json"
    kept = file.read_bytes()
    own("prune", one, "--release", "--key", key)
    file.write_bytes(kept)
    assert [hold["recording"] for hold in own.json("prune", "--holds", "--key", key)] == [two]


@pytest.mark.parametrize("left", ["manifest", "chunk"])
def test_a_session_that_is_damaged_can_be_held_by_its_id(own: Folder, key: str, left: str) -> None:
    one = own.ids[0]
    place = own.stage.place(one)
    for path in place.iterdir():
        if left == "manifest" and path.name == "recording.json":
            path.write_bytes(b"{")
        elif left == "chunk":
            path.unlink() if path.name == "recording.json" else path.write_bytes(b"rubbish")
    (hold,) = own.json("prune", one, "--hold", "--reason", "x", "--key", key)
    assert hold["recording"] == one and hold["signed"] is True
    own("prune", one, "--key", key, "--reason", "y", "--yes", "--despite-faults", code=1)
    assert any(place.iterdir())


def test_a_hold_that_was_changed_is_told_and_can_be_released(own: Folder, key: str) -> None:
    one = own.ids[0]
    (hold,) = own.json("prune", one, "--hold", "--reason", "x", "--key", key)
    file = own.stage.root / f"holds/{hold['id']}.json"
    file.write_text(file.read_text().replace(one, own.ids[1]))
    assert "is not what was signed" in own("prune", "--holds", "--key", key, code=1).stderr
    assert "is not what was signed" in own("verify", "--public-key", key, code=1).stderr
    file.unlink()
    assert "its file is missing" in own("prune", "--holds", "--key", key, code=1).stderr
    assert "its file is missing" in own("prune", one, "--key", key, "--reason", "x", "--yes", code=1).stderr
    own("prune", hold["id"], "--release", "--key", key)
    own("verify", "--public-key", key)


def test_a_hold_with_a_key_that_is_not_in_force_is_placed_and_not_signed(own: Folder, key: str, tmp_path: Path) -> None:
    own("prune", own.ids[1], "--hold", "--reason", "x", "--key", key)
    other = Signer.make_file(tmp_path / "other.pem")
    result = own("prune", own.ids[0], "--hold", "--reason", "x", "--key", str(tmp_path / "other.pem"), code=1)
    assert "is placed, but it is not signed" in result.stderr and other.id
    assert [hold["signed"] for hold in own.json("prune", "--holds", "--key", key)] == [True, False]
    own("verify", "--public-key", key)


def test_what_is_not_as_it_was_sealed_is_not_removed_by_hand(own: Folder, key: str) -> None:
    one, two, _three = own.ids
    path = own.stage.place(one) / "00000000.chunk"
    path.write_bytes(path.read_bytes() + b"x")
    result = own("prune", one, two, "--key", key, "--reason", "x", "--yes", code=1)
    assert "removed 1" in result.stdout and "differs from what was sealed and is not removed" in result.stderr
    assert own.stage.place(one).exists() and not own.stage.place(two).exists()
    own("prune", one, "--key", key, "--reason", "x", "--yes", "--despite-faults")
    result = own("verify", "--public-key", key)
    assert "it differed from what was sealed, which was known" in result.stdout


def test_what_cannot_be_read_is_removed_by_hand(own: Folder, key: str) -> None:
    one, two, _three = own.ids
    remove = ("prune", one, "--key", key, "--reason", "a bad disk", "--yes")
    place = own.stage.place(one) / "recording.json"
    whole = place.read_bytes()
    for arguments in (one, "--hold"), ("--hold-matching", "user=bob@*"), (two, "--hold"):
        (hold,) = own.json("prune", *arguments, "--reason", "case 7", "--key", key)
        place.write_text("{")
        own("rebuild")
        if two in arguments:
            result = own(*remove, code=1)
            assert "removed 0" in result.stdout and f"the manifest of {one} cannot be read" in result.stderr
            own(*remove, "--despite-faults")
        else:  # a hold may be of whose it was
            assert "a session that is held is not removed" in own(*remove, "--despite-faults", code=1).stderr
            place.write_bytes(whole)
            own("prune", "--release", hold["id"], "--reason", "x", "--key", key)
        assert own.stage.place(one).exists() is (two not in arguments)
    assert own("search", "bytes").stderr == ""
    assert "it differed from what was sealed, which was known" in own("verify", "--public-key", key).stdout


def test_who_did_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from recorder.cli.prune import _me

    monkeypatch.setattr("getpass.getuser", lambda: "root")
    monkeypatch.setattr("socket.gethostname", lambda: "vm")
    monkeypatch.delenv("SUDO_USER", raising=False)
    assert _me("") == "root@vm" and _me(" Ana Ruiz ") == "Ana Ruiz (root@vm)"
    monkeypatch.setenv("SUDO_USER", "ana")
    assert _me("") == "ana as root@vm" and _me("Ana Ruiz") == "Ana Ruiz (ana as root@vm)"


def invoke(*arguments: str) -> Result:
    return CliRunner(env={"RECORDER_CONFIG": None, "RECORDER_URL": None}).invoke(cli, list(arguments))


def configuration(own: Folder, tmp_path: Path, key: str, more: str = "") -> str:
    path = tmp_path / "recorder.yaml"
    path.write_text(
        f"apiVersion: recorder/v1alpha1\nstore: {{folder: {own.stage.root}}}\nproof: {{key: {key}}}\n{more}"
    )
    return str(path)


def test_prune_by_rule(own: Folder, key: str, tmp_path: Path) -> None:
    config = configuration(
        own, tmp_path, key, "retention: {maxBytes: 1, rules: [{match: {clusters: [prod]}, keep: forever}]}"
    )
    result = invoke("prune", "--config", config, "--dry-run")
    assert result.exit_code == 0 and result.stdout.count("goes") == 2, result.output
    assert "bytes more than the limit remain" in result.stderr
    assert all(own.stage.place(identifier).exists() for identifier in own.ids)
    result = invoke("prune", "--config", config, "--yes", "--json")
    assert [gone["removed"] for gone in json.loads(result.stdout)["doomed"]] == [True, True]
    assert [own.stage.place(identifier).exists() for identifier in own.ids] == [True, False, False]
    assert invoke("verify", "--config", config).exit_code == 0


def test_where(own: Folder, key: str, tmp_path: Path) -> None:
    config = configuration(own, tmp_path, key)
    assert invoke("ls", "--config", config).exit_code == 0
    assert invoke("ls").exit_code == 2
    assert invoke("ls", "--store", str(own.stage.root), "--config", config).exit_code == 2
    assert invoke("ls", "--store", str(tmp_path / "nowhere")).exit_code == 1
    assert invoke("ls", "--url", "ftp://x").exit_code == 2
    assert invoke("ls", "--store", "ftp://x").exit_code == 2
    assert invoke("ls", "--config", str(tmp_path / "none.yaml")).exit_code == 2
    assert invoke("verify", "--url", "http://127.0.0.1:1").exit_code == 2
    result = invoke("ls", "--url", "http://127.0.0.1:1")
    assert result.exit_code == 1 and result.stderr == "recorder: there is no recorder at http://127.0.0.1:1/api/v1\n"
    runner = CliRunner(env={"RECORDER_CONFIG": config})
    assert runner.invoke(cli, ["ls"]).exit_code == 0
    assert runner.invoke(cli, ["ls", "--store", str(own.stage.root)]).exit_code == 0


def test_in_a_folder_in_use_a_removal_is_signed_and_left_to_the_recorder(own: Folder, key: str) -> None:
    one, two, _three = own.ids

    async def prune(*arguments: str, code: int = 0) -> Result:
        return await asyncio.to_thread(own, "prune", *arguments, code=code)

    async def check() -> None:
        async with own.stage.store() as store:
            result = await prune(one, "--unsigned", "--reason", "x", "--yes", code=1)
            assert "another recorder is using this folder: stop it" in result.stderr
            await prune(two, "--hold", "--reason", "x", "--key", key)
            result = await prune(two, "--key", key, "--reason", "x", "--yes", code=1)
            assert "release it first" in result.stderr
            result = await prune(one, "--key", key, "--reason", "x", "--yes")
            assert "signed the removal of 1" in result.stdout and own.stage.place(one).exists()
            pruner = Pruner(store, Rules(), signer=own.stage.signer)
            assert await pruner.repair() == 1 and await pruner.repair() == 0
            assert not own.stage.place(one).exists() and own.stage.place(two).exists()
        assert statuses(await own.stage.verify())[one] == "removed"

    run(check())


def test_an_encrypted_store_needs_its_key(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "store", keyring=Keyring([b"k" * 32]))
    (identifier,) = run(stage.fill(1))
    (tmp_path / "key").write_text((b"k" * 32).hex())
    (tmp_path / "key").chmod(0o600)
    result = invoke("ls", "--store", str(stage.root))
    assert result.exit_code == 1 and "--encryption-key" in result.stderr
    result = invoke("ls", "--store", str(stage.root), "--encryption-key", str(tmp_path / "key"))
    assert result.exit_code == 0 and identifier in result.stdout
    result = invoke("verify", "--store", str(stage.root), "--trust-store-keys")
    assert "1 not sealed yet" in result.stdout


def test_what_cannot_be_read_is_told(own: Folder) -> None:
    (own.stage.place(own.ids[0]) / "recording.json").write_text("\x1b{}")
    result = own("ls")
    assert own.ids[0] not in result.stdout and "recording unreadable" in result.stderr and harmless(result.stderr)


async def _hide(stage: Stage) -> str:
    async with stage.store() as store:
        body = b'[1.0,"o","well\\u001b_stolen s\xc3\xa9cret\\u001b\\\\\\r\\n"]\n'
        identifier = await stage.record(store, body, header())
        await stage.settled(store)
    return identifier


@pytest.mark.parametrize("indexed", [False, True])
def test_output_that_a_terminal_does_not_show(own: Folder, indexed: bool) -> None:
    identifier = run(_hide(own.stage))
    if indexed:
        own("rebuild")
        assert "--unseen" in own("show", identifier).stdout and "--unseen" not in own("show", own.ids[0]).stdout
    assert own("show", identifier, "--unseen").stdout.split() == [
        *("SECONDS", "HIDDEN", "AS", "TEXT"),
        *("1.000", "APC", "stolen", "sécret"),
    ]
    assert own.json("show", identifier, "--unseen") == [{"time": 1.0, "kind": "APC", "text": "stolen sécret"}]
    assert "nothing was found" in own("show", own.ids[0], "--unseen").stderr
    (found,) = own.json("search", "secret")
    assert found["id"] == identifier and found["unseen"] and found["hits"][0]["unseen"] == "APC"
    assert "(not shown: APC) stolen sécret" in own("search", "secret").stdout
    assert "does not show" in own("play", identifier, "--raw", "--speed", "64").stderr
    assert "does not show" not in own("play", own.ids[0], "--raw", "--speed", "64", "--idle-limit", "0.01").stderr


def test_an_answer_of_an_index_that_lacks_something_says_so(own: Folder) -> None:
    own("rebuild")
    assert own("search", "deploy").stderr == ""
    run(_hide(own.stage))
    for arguments in (["search", "deploy"], ["search", "deploy", "--json"], ["show", own.ids[0]]):
        assert "the index has 3 of 4 sessions so far, so the answer may be incomplete" in own(*arguments).stderr
    assert "3 of 4" in own("search", "secret", code=1).stderr
    assert own("ls").stderr == ""  # of the store itself


@pytest.mark.parametrize(
    ("index", "why"),
    [
        (None, ""),
        ({}, ""),
        ({"complete": True, "share": 1, "indexed": None, "sessions": None, "running": 0}, ""),
        ({"complete": False, "share": 0.25, "indexed": 1, "sessions": 4, "running": 0}, "1 of 4 sessions"),
        ({"complete": False, "share": 0.25, "indexed": None, "sessions": None, "running": 0}, "25.0% of all sessions"),
        ({"complete": False}, "not all sessions"),
        (
            {"complete": False, "unreadable": ["A", "B"]},
            "sessions that cannot be read: A, B (recorder verify ID gives the reason)",
        ),
        ({"complete": False, "indexed": 1, "sessions": 2, "unreadable": ["A"]}, "1 of 2 sessions, so the answer"),
        ({"complete": False, "unreadable": "x"}, "sessions so far"),
        ({"complete": True, "running": 2}, "the last minutes of 2 running"),
        ({"complete": "x", "running": "y"}, ""),
    ],
)
def test_what_a_recorder_says_of_its_index(index: object, why: str) -> None:
    found = shortness(index)
    assert why in found and bool(why) is bool(found)


def test_a_session_that_cannot_be_read_is_named(own: Folder) -> None:
    own("rebuild")
    (own.stage.place(own.ids[0]) / "recording.json").write_text("{")
    own("rebuild")
    said = own("search", "bytes").stderr
    assert (
        f"2 of 3 sessions, so the answer may be incomplete; sessions that cannot be read: {own.ids[0]} (recorder verify"
        in said
    )


def test_what_is_pruned_stands_in_no_file(own: Folder, key: str) -> None:
    identifier = run(_hide(own.stage))
    own("rebuild")
    files = [path for path in own.stage.root.rglob("*") if path.is_file()]
    assert any(b"stolen" in path.read_bytes() for path in files if path.name.startswith("index.db"))
    own("prune", identifier, "--key", key, "--reason", "asked for", "--yes")
    left = [path.name for path in own.stage.root.rglob("*") if path.is_file() and b"stolen" in path.read_bytes()]
    assert left == []
    own("search", "stolen", code=1)
    assert own("search", "deploy").stderr == ""
