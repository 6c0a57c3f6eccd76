"""`recorder verify`: was anything changed, cut or taken away?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from k8sproxy.common.cli import EXISTING_FILE, Failed, json_option, print_json
from recorder.cli.common import Where, execute, place_options, print_table, printable, progress_bar

if TYPE_CHECKING:
    from recorder.proof.keys import PublicKeys
    from recorder.proof.report import Report
    from recorder.proof.witness import Witness
    from recorder.store.blobs import Blobs


@click.command("verify", short_help="Report which recordings were changed, cut or removed.")
@click.argument("identifier", metavar="[ID]", required=False, default="")
@place_options(running=False)
@click.option("--day", default="", metavar="YYYY-MM-DD", help="Verify only what was sealed on that day.")
@click.option(
    "--public-key", "public_key_files", multiple=True, type=EXISTING_FILE, metavar="FILE",
    help="A public key that manifests may be signed with; may be repeated (default: the configuration's).",
)  # fmt: skip
@click.option(
    "--trust-store-keys",
    is_flag=True,
    help="Take the keys from the store. Anyone who can change the store can change them too.",
)
@click.option(
    "--anchor", type=EXISTING_FILE, metavar="PATH",
    help="A folder with an anchor, or a file of one, that the store must fit (default: the configuration's).",
)  # fmt: skip
@click.option("--all", "every", is_flag=True, help="Also print the sessions without a fault.")
@json_option
def command(
    where: Where,
    identifier: str,
    day: str,
    public_key_files: tuple[Path, ...],
    trust_store_keys: bool,
    anchor: Path | None,
    every: bool,
    as_json: bool,
) -> None:
    """Hash what is stored and hold it against the signed manifests: all of it, one day, or the session ID.

    \b
    ok              as it was sealed
    signed late     as it was sealed, and not signed when it ended; the detail says why
    open            it still runs
    not sealed yet  its day is not over, or was just now
    removed         by retention or by hand, as was signed before
    changed         something in it is not what was sealed; the detail says what
    cut             chunks at its end are missing, or torn
    missing         sealed, not there, and nobody has signed its removal
    unknown         there, and the recorder has not signed that it put it there

    Exit code 0 only if all is well: every state is one of the first five, no manifest is missing, and each is signed;
    the acts (holds, releases, removals, reversals) are signed and all there, and each hold is as it was signed.
    Decryption keys are not needed.
    """
    from recorder.proof.days import is_day

    if day and (not is_day(day) or identifier):
        raise click.UsageError("--day must be a day such as 2026-11-22" if not identifier else "either ID or --day")
    report = execute(_verify(where, identifier, day, public_key_files, trust_store_keys, anchor))
    if as_json:
        print_json(report.values())
    else:
        _print(report, every or bool(identifier))
    if not report.well:
        raise click.exceptions.Exit(1)


async def _verify(
    where: Where,
    identifier: str,
    day: str,
    key_files: tuple[Path, ...],
    trust: bool,
    anchor: Path | None,
) -> Report:
    from recorder.cli.opening import open_read_only
    from recorder.crypt import stored
    from recorder.proof.verify import Verifier
    from recorder.proof.witness import Witnesses

    async with open_read_only(where.store()) as store:
        keys = await _keys(where, key_files, trust, stored(store.blobs))
        anchors = Witnesses(_witnesses(where, anchor, store.blobs))
        verifier = Verifier(store.blobs, keys, witnesses=anchors.all)
        with progress_bar("verified") as progress:
            try:
                return await verifier.run(day=day, identifier=identifier, progress=progress)
            except (KeyError, ValueError):
                raise Failed(
                    f"there is no session {printable(identifier, 60)}, and no session with this id was sealed"
                ) from None
            finally:
                await anchors.aclose()


async def _keys(where: Where, files: tuple[Path, ...], trust: bool, raw: Blobs) -> PublicKeys:
    from recorder.proof.chain import stored_keys
    from recorder.proof.keys import PublicKeys, read_public_key
    from recorder.retention.service import KeepingError, public_keys, signer

    if files:
        return PublicKeys([read_public_key(path) for path in files])
    if trust:
        click.echo("recorder: the keys are the store's own: this check finds accidents, not forgery", err=True)
        return await stored_keys(raw)
    config = where.store()
    if where.configured and (config.proof.key is not None or config.proof.public_keys):
        try:
            return public_keys(config, signer(config))
        except KeepingError as error:
            raise Failed(str(error)) from None
    raise click.UsageError("name the keys to trust: --public-key FILE, or --trust-store-keys")


def _witnesses(where: Where, path: Path | None, blobs: Blobs) -> list[Witness]:
    from recorder.proof.handover import MANIFESTS
    from recorder.proof.witness import FolderWitness, MemoryWitness, chain_name, read_anchor
    from recorder.retention.service import KeepingError, witnesses

    if path is None:
        try:
            return witnesses(where.store(), blobs) if where.configured else []
        except KeepingError as error:
            raise Failed(str(error)) from None
    if path.is_dir():
        return [FolderWitness(path)]
    # A file of such a folder, or what older recorders have left beside their key.
    name = MANIFESTS if path.suffix == ".anchor" else chain_name(path.name)
    return [MemoryWitness({name: read_anchor(path)}, f"file {path}")]


def _print(report: Report, every: bool) -> None:
    from recorder.proof.report import WELL, Status

    quiet = () if every else (Status.OK, Status.OPEN, Status.UNSEALED)
    shown = [finding for finding in report.findings if finding.status not in quiet]
    if shown:
        rows = [(finding.id, finding.status.value, finding.day, finding.detail) for finding in shown]
        print_table(("WHAT", "STATE", "SEALED", "DETAIL"), rows)
    for note in report.notes:
        click.echo(f"note: {printable(note)}")
    for fault in report.faults:
        click.echo(f"recorder: {printable(fault)}", err=True)
    counts = ", ".join(f"{count} {name}" for name, count in report.counts().items() if count) or "nothing there"
    days = (
        f"{report.manifests} manifests, {report.first_day} to {report.last_day}" if report.manifests else "no manifests"
    )
    click.echo(f"{counts}; {days}")
    if report.last is not None:
        click.echo(f"last manifest: number {report.last.number}, sha256 {report.last.sha256}")
    acts = report.acts
    if acts.last is not None or acts.unsigned:
        unsigned = f", and {acts.unsigned} that are not signed" if acts.unsigned else ""
        click.echo(
            f"acts: {acts.count} signed: {acts.releases} releases, {acts.removals} removals, "
            f"{acts.reversals} reversals; {acts.holds} holds active{unsigned}"
        )
    if acts.last is not None:
        click.echo(f"last act: number {acts.last.number}, sha256 {acts.last.sha256}")
    for anchor in report.anchors:
        click.echo(f"anchor: {printable(anchor)}")
    bad = sum(finding.status not in WELL for finding in report.findings)
    verdict = (
        "all is well"
        if report.well
        else f"NOT well: {bad} recordings, {len(report.faults)} faults of manifests and acts"
    )
    click.echo(verdict)
