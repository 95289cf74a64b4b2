"""Command: ``ptxsdk node``, ``watch`` and ``view``.  What they need is imported when they are called."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from ptxsdk.arguments import path_argument, path_option
from ptxsdk.errors import NodeError, PtxsdkError

if TYPE_CHECKING:
    from ptxsdk.node.config import NodeConfig

_MIB = 1 << 20

Forward = Annotated[
    list[str] | None, typer.Option("--forward", metavar="AET@HOST:PORT", help="Where results go; may be repeated.")
]
Out = Annotated[Path | None, path_option("--out", help="Folder to leave results in.")]
Spool = Annotated[Path, path_option("--spool", help="Folder of the queue.")]
Write = Annotated[str, typer.Option("--write", help="sc,sr,seg,gsps; default the first three.")]
ProfileOption = Annotated[str, typer.Option("--profile", help="triage or cade; triage: never a location.")]
Aet = Annotated[str, typer.Option("--aet", help="AE title of the node.")]
Http = Annotated[
    int | None, typer.Option("--http", metavar="PORT", help="Health, counters and page, on 127.0.0.1; 0: any port.")
]
Engine = Annotated[Path | None, path_option("--engine", help="A .ptxengine; default: the one that ships.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda[:N].")]
Backend = Annotated[str, typer.Option("--backend", help="auto, openvino, tensorrt or onnxruntime.")]
Precision = Annotated[str, typer.Option("--precision", help="auto, fp32, fp16 or int8.")]
Point = Annotated[str | None, typer.Option("--operating-point", help="By name.")]
Key = Annotated[
    Path | None, path_option("--key", metavar="PUB", help="Ed25519 public key, raw or PEM: refuse other engines.")
]
Rollback = Annotated[
    Path | None, path_option("--rollback", metavar="FILE", help="Refuse engines older than this file remembers.")
]
Audit = Annotated[
    Path | None, path_option("--audit", metavar="FILE", help="Append a record of every film, scored or not.")
]
Timeout = Annotated[
    float, typer.Option("--timeout", metavar="SECONDS", help="Give up a film that takes longer, after three tries.")
]
Workers = Annotated[int, typer.Option("--workers", min=1, help="Films scored side by side.")]
Keep = Annotated[int, typer.Option("--keep", min=0, help="Films that stay in the spool for the page.")]
Reserve = Annotated[int, typer.Option("--reserve", metavar="MIB", min=0, help="Room to leave on the disk.")]
MaxObject = Annotated[int, typer.Option("--max-object", metavar="MIB", min=1, help="Largest object taken.")]
Grace = Annotated[float, typer.Option("--grace", metavar="SECONDS", min=0, help="For what is in hand at a stop.")]
GiveUp = Annotated[float, typer.Option("--give-up", metavar="HOURS", help="Results are given up that waited longer.")]
TlsCert = Annotated[Path | None, path_option("--tls-cert", help="PEM: speak TLS, with this certificate.")]
TlsKey = Annotated[Path | None, path_option("--tls-key", help="PEM of its key.")]
TlsCa = Annotated[Path | None, path_option("--tls-ca", help="PEM: peers must be signed by one of these.")]
ForwardTls = Annotated[bool, typer.Option("--forward-tls", help="Speak TLS to the destinations as well.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (node, watch, view):
        app.command()(command)


def node(
    aet: Aet = "PTX",
    host: Annotated[str, typer.Option("--host", help="Address to listen on; 0.0.0.0: all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0: any.")] = 11112,
    forward: Forward = None,
    out: Out = None,
    allow: Annotated[
        list[str] | None, typer.Option("--allow", metavar="AET", help="Who may call; may be repeated. ANY: anybody.")
    ] = None,
    spool: Spool = Path("ptxsdk-spool"),
    write: Write = "",
    profile: ProfileOption = "cade",
    http: Http = 11113,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_ca: TlsCa = None,
    forward_tls: ForwardTls = False,
    max_associations: Annotated[int, typer.Option("--max-associations", min=1, help="At one time.")] = 16,
    max_per_host: Annotated[int, typer.Option("--max-per-host", min=1, help="Of these, from one address.")] = 8,
    max_object: MaxObject = 128,
    idle: Annotated[float, typer.Option("--idle", metavar="SECONDS", help="Cut off peers silent so long.")] = 30,
    workers: Workers = 2,
    timeout: Timeout = 120,
    keep: Keep = 20,
    reserve: Reserve = 256,
    give_up: GiveUp = 72,
    grace: Grace = 20,
    engine: Engine = None,
    device: Device = "auto",
    backend: Backend = "auto",
    precision: Precision = "auto",
    operating_point: Point = None,
    key: Key = None,
    rollback: Rollback = None,
    audit: Audit = None,
) -> None:
    """Take films by DICOM, send results by DICOM or leave them in a folder.

    Runs until SIGTERM or SIGINT; logs JSON lines on stderr. Listening on other addresses than this machine's own asks
    for --allow.
    """
    from ptxsdk.node.config import LOOPBACK, NodeConfig

    def config() -> NodeConfig:
        allowed = () if allow is None or allow == ["ANY"] else tuple(allow)
        if allow is None and host not in LOOPBACK:
            raise NodeError("node.option", f"--host {host} opens the node to others: say with --allow who may call")
        return NodeConfig(
            aet=aet,
            host=host,
            port=port,
            allow=allowed,
            max_associations=max_associations,
            max_per_host=max_per_host,
            idle_seconds=idle,
            film_seconds=timeout,
            **_common(forward, out, spool, write, profile, http, workers, keep, reserve, max_object, give_up, grace),
            **_tls(tls_cert, tls_key, tls_ca, forward_tls),
        )

    options = {"device": device, "backend": backend, "precision": precision, "operating_point": operating_point}
    _run(config, engine, key, audit, rollback=rollback, **options)


def watch(
    folder: Annotated[Path, path_argument(metavar="DIR", help="Folder that DICOM files are dropped into.")],
    out: Out = None,
    forward: Forward = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove a file once its film was read.")] = False,
    settle: Annotated[float, typer.Option("--settle", metavar="SECONDS", help="A file must stand still so long.")] = 2,
    aet: Aet = "PTX",
    spool: Spool = Path("ptxsdk-spool"),
    write: Write = "",
    profile: ProfileOption = "cade",
    http: Http = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_ca: TlsCa = None,
    forward_tls: ForwardTls = False,
    max_object: MaxObject = 128,
    workers: Workers = 2,
    timeout: Timeout = 120,
    keep: Keep = 20,
    reserve: Reserve = 256,
    give_up: GiveUp = 72,
    grace: Grace = 20,
    engine: Engine = None,
    device: Device = "auto",
    backend: Backend = "auto",
    precision: Precision = "auto",
    operating_point: Point = None,
    key: Key = None,
    rollback: Rollback = None,
    audit: Audit = None,
) -> None:
    """Take films from a folder that a unit drops them into; results go where those of the node do."""
    from ptxsdk.node.config import NodeConfig

    def config() -> NodeConfig:
        if not folder.is_dir():
            raise NodeError("node.option", f"{str(folder)!r} is not a folder")
        return NodeConfig(
            aet=aet,
            watch=folder,
            remove_dropped=remove,
            settle_seconds=settle,
            film_seconds=timeout,
            **_common(forward, out, spool, write, profile, http, workers, keep, reserve, max_object, give_up, grace),
            **_tls(tls_cert, tls_key, tls_ca, forward_tls),
        )

    options = {"device": device, "backend": backend, "precision": precision, "operating_point": operating_point}
    _run(config, engine, key, audit, rollback=rollback, **options)


def view(
    spool: Annotated[Path, path_argument(metavar="SPOOL", help="Folder of a node's queue.")],
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="On 127.0.0.1; 0: any.")] = 11113,
) -> None:
    """Show the films in a spool in a browser on this machine, also while no node runs."""
    from ptxsdk.node.store import Store
    from ptxsdk.node.web import Web

    try:
        store = Store(spool, readonly=True)
        web = Web(port, store)
    except PtxsdkError as error:
        _fail(error)
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.set())
    web.start()
    typer.echo(f"http://127.0.0.1:{web.port}/")
    asked.wait()
    web.stop()
    store.close()


def _common(
    forward: list[str] | None,
    out: Path | None,
    spool: Path,
    write: str,
    profile: str,
    http: int | None,
    workers: int,
    keep: int,
    reserve: int,
    max_object: int,
    give_up: float,
    grace: float,
) -> dict[str, Any]:
    """Return the part of the configuration that `node` and `watch` share."""
    from ptxsdk.node.config import Peer

    if profile not in ("cade", "triage"):
        raise NodeError("node.option", f"profile {profile!r} is not cade or triage")
    return {
        "forward": tuple(Peer.parse(text) for text in forward or ()),
        "out": None if out is None else out.absolute(),
        "spool": spool,
        "formats": tuple(name.strip() for name in write.split(",") if name.strip()),
        "profile": profile,
        "http_port": http,
        "workers": workers,
        "keep": keep,
        "reserve_bytes": reserve * _MIB,
        "max_object_bytes": max_object * _MIB,
        "give_up_seconds": give_up * 3600,
        "grace_seconds": grace,
    }


def _tls(certificate: Path | None, key: Path | None, authority: Path | None, forward: bool) -> dict[str, Any]:
    from ptxsdk.node.config import Tls

    if (certificate is None) != (key is None) or (authority is not None and certificate is None):
        raise NodeError("node.option", "TLS needs --tls-cert and --tls-key; --tls-ca goes with them")
    tls = None if certificate is None or key is None else Tls(certificate, key, authority)
    return {"tls": tls, "forward_tls": forward}


def _run(
    make_config: Callable[[], NodeConfig], engine: Path | None, key: Path | None, audit: Path | None, **options: Any
) -> None:
    """Make the service, and run it until it is told to stop."""
    import ptxsdk

    with contextlib.ExitStack() as held:
        try:
            config = make_config()
            from ptxsdk.node import log
            from ptxsdk.node.service import Service

            keys = None if key is None else (_read_key(key),)
            log.start()
            records = None if audit is None else held.enter_context(ptxsdk.AuditFile(audit))
            options |= {"trusted_keys": keys, "audit": records, "profile": config.profile}
            service = Service(config, lambda: ptxsdk.Detector(engine, **options))
        except PtxsdkError as error:
            _fail(error)
        if not service.run():
            raise typer.Exit(1)


def _read_key(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise NodeError("node.option", f"--key {str(path)!r} cannot be read: {error.strerror}") from error


def _fail(error: PtxsdkError) -> NoReturn:
    typer.echo(str(error), err=True)
    usage = error.code in ("node.option", "detector.option")
    raise typer.Exit(2 if usage else 1) from error
