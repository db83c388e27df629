# SPDX-License-Identifier: Apache-2.0
"""``fedweave pki``: who may take part in a deployment, and with which certificate."""

from __future__ import annotations

import json as _json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedweave.errors import UsageError

if TYPE_CHECKING:
    from fedweave.net.identity import Send

pki_app = typer.Typer(
    help="Certificates: an authority of your own, tokens with which clients enrol, and who was revoked.", no_args_is_help=True
)

PKI = Path("pki")
Where = Annotated[Path, typer.Option("--pki", help="The authority's folder.")]
Client = Annotated[str, typer.Argument(metavar="CLIENT", help="The client's name.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on stdout, and nothing else.")]
HEAD = ("client", "state", "since", "until", "certificate")


def _say(json: bool, plain: dict[str, Any], text: str) -> None:
    typer.echo(_json.dumps(plain) if json else text)


@pki_app.command()
def init(
    pki: Where = PKI,
    days: Annotated[float, typer.Option(help="How long the authority's certificate is valid, in days.")] = 3650,
    json: AsJson = False,
) -> None:
    """Make an authority: a folder whose private key says who takes part. Keep it where the coordinator runs."""
    from fedweave.net.certificates import fingerprint
    from fedweave.net.pki import Authority

    if not 0 < days <= 36_500:
        raise UsageError(f"--days is {days:g}; it must be above 0 and at most 36500.")
    authority = Authority.create(pki, days=days)
    mark = fingerprint(authority.certificate)
    authority.close()
    _say(
        json,
        {"pki": str(pki), "fingerprint": mark},
        f"Made an authority in {pki}.\nIts fingerprint is {mark}.\n"
        f"Invite a client with `fedweave pki token CLIENT --pki {pki}`.",
    )


@pki_app.command()
def token(
    client: Client,
    pki: Where = PKI,
    ttl: Annotated[float, typer.Option(help="How long it can be used, in seconds.")] = 3600,
    out: Annotated[Path | None, typer.Option(help="Write it to this file, mode 0600, instead of printing it.")] = None,
    json: AsJson = False,
) -> None:
    """Invite a client: print a token with which it can enrol once. Whoever has it can be that client: keep it secret."""
    from fedweave.net.pki import Authority
    from fedweave.store.blobs import write_durably

    authority = Authority.open(pki)
    made = authority.token(client, ttl)
    authority.close()
    if out is not None:
        write_durably(out, made.encode() + b"\n", 0o600)
        _say(
            json,
            {"client": client, "ttl": ttl, "file": str(out)},
            f"Wrote the token for {client} to {out}; it is good for {ttl:g} s.",
        )
    else:
        _say(json, {"client": client, "ttl": ttl, "token": made}, made)


@pki_app.command()
def enrol(
    workdir: Annotated[Path, typer.Option(help="The client's folder; its keys are made there and never leave it.")],
    token_file: Annotated[
        str, typer.Option(help="File with the token, - for standard input; or give it as FEDWEAVE_TOKEN.")
    ] = "",
    server: Annotated[str | None, typer.Option(help="The coordinator's enrolment address, HOST:PORT.")] = None,
    pki: Annotated[Path | None, typer.Option(help="An authority's folder on this machine, instead of a server.")] = None,
    json: AsJson = False,
) -> None:
    """On the client: make its keys, have them certified with a token, and keep them. Again, with a new token, to renew."""
    from fedweave.net.identity import enrol as enrolled

    own = enrolled(workdir, _token(token_file), _send(server, pki))
    until = f"{own.expires:%Y-%m-%d}"
    _say(
        json,
        {"client": own.client, "workdir": str(workdir), "until": own.expires.isoformat()},
        f"Enrolled {own.client}: its keys and certificate, valid until {until}, are in {workdir / 'identity.pem'}.",
    )


def _token(file: str) -> str:
    """Never from an argument: other users of the machine can read those."""
    if file == "-":
        return sys.stdin.read()
    if file:
        try:
            return Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise UsageError(f"--token-file is {file}, which cannot be read.") from None
    if given := os.environ.get("FEDWEAVE_TOKEN"):
        return given
    raise UsageError("No token was given; write --token-file FILE, or set FEDWEAVE_TOKEN. `fedweave pki token` makes one.")


def _send(server: str | None, pki: Path | None) -> Send:
    if (server is None) == (pki is None):
        raise UsageError("Give either --server HOST:PORT or --pki DIR, to say who certifies the keys.")
    if pki is not None:
        from fedweave.net.pki import Authority

        return Authority.open(pki).enrol
    assert server is not None
    from fedweave.net.certified import enrolling

    return enrolling(server)


@pki_app.command()
def revoke(client: Client, pki: Where = PKI, json: AsJson = False) -> None:
    """End all certificates and unused tokens of a client. A running coordinator refuses it from the next second on."""
    from fedweave.net.pki import Authority

    authority = Authority.open(pki)
    ended = authority.revoke(client)
    authority.close()
    _say(json, {"client": client, "certificates": ended}, f"Revoked {client}: {ended} certificate{'' if ended == 1 else 's'}.")


@pki_app.command("list")
def list_clients(pki: Where = PKI, json: AsJson = False) -> None:
    """Who was invited, enrolled, revoked, and until when."""
    from fedweave.app import text
    from fedweave.net.pki import Authority

    authority = Authority.open(pki)
    entries = authority.listing()
    authority.close()
    if json:
        for entry in entries:
            plain = {"client": entry.client, "state": entry.state, "serial": entry.serial or None}
            typer.echo(_json.dumps({**plain, "since": entry.made.isoformat(), "until": entry.until.isoformat()}))
        return
    if not entries:
        typer.echo(f"Nobody was invited yet. Invite a client with `fedweave pki token CLIENT --pki {pki}`.")
        return
    rows = [
        (entry.client, entry.state, f"{entry.made:%Y-%m-%d %H:%M}", f"{entry.until:%Y-%m-%d %H:%M}", entry.serial[:16] or "-")
        for entry in entries
    ]
    typer.echo(text.table(HEAD, rows) + "\n\nTimes are UTC.")
