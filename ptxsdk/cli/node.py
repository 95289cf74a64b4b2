"""Commands: ``ptxsdk node``, ``watch`` and ``view``.  What they need is imported when they are called."""

from __future__ import annotations

import contextlib
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from ptxsdk.cli.detector import read_key
from ptxsdk.cli.options import (
    AuditOption,
    BackendOption,
    DeviceOption,
    EngineOption,
    KeyOption,
    OperatingPointOption,
    Precision,
    PrecisionOption,
    Profile,
    ProfileOption,
    RollbackOption,
    path_argument,
    path_option,
    takes,
)
from ptxsdk.errors import NodeError, PtxsdkError

if TYPE_CHECKING:
    from ptxsdk.node.config import NodeConfig, Tls

_MIB = 1 << 20


@dataclass(frozen=True)
class ServiceOptions:
    """Options of `node` and `watch`: where results go, how films are scored, and the queue between."""

    forward: Annotated[
        list[str] | None, typer.Option("--forward", metavar="AET@HOST:PORT", help="Where results go; may be repeated.")
    ] = None
    out: Annotated[Path | None, path_option("--out", help="Folder to leave results in.")] = None
    write: Annotated[str, typer.Option("--write", help="sc,sr,seg,gsps; default the first three.")] = ""
    aet: Annotated[str, typer.Option("--aet", help="AE title of the node.")] = "PTX"
    tls_cert: Annotated[Path | None, path_option("--tls-cert", help="PEM: speak TLS, with this certificate.")] = None
    tls_key: Annotated[Path | None, path_option("--tls-key", help="PEM of its key.")] = None
    tls_ca: Annotated[Path | None, path_option("--tls-ca", help="PEM: peers must be signed by one of these.")] = None
    forward_tls: Annotated[bool, typer.Option("--forward-tls", help="Speak TLS to the destinations as well.")] = False
    spool: Annotated[Path, path_option("--spool", help="Folder of the queue.")] = Path("ptxsdk-spool")
    keep: Annotated[int, typer.Option("--keep", min=0, help="Films that stay in the spool for the page.")] = 20
    reserve: Annotated[int, typer.Option("--reserve", metavar="MIB", min=0, help="Room to leave on the disk.")] = 256
    max_object: Annotated[int, typer.Option("--max-object", metavar="MIB", min=1, help="Largest object taken.")] = 128
    give_up: Annotated[
        float, typer.Option("--give-up", metavar="HOURS", help="Results are given up that waited longer.")
    ] = 72
    grace: Annotated[
        float, typer.Option("--grace", metavar="SECONDS", min=0, help="For what is in hand at a stop.")
    ] = 20
    workers: Annotated[int, typer.Option("--workers", min=1, help="Films scored side by side.")] = 2
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", help="Give up a film that takes longer, after three tries.")
    ] = 120
    engine: EngineOption = None
    device: DeviceOption = "auto"
    backend: BackendOption = "auto"
    precision: PrecisionOption = Precision.auto
    profile: ProfileOption = Profile.cade
    operating_point: OperatingPointOption = None
    key: KeyOption = None
    rollback: RollbackOption = None
    audit: AuditOption = None

    def run(self, **own: Any) -> None:
        """Run the node until it is told to stop; `own` are the fields of its configuration that these do not give."""
        import ptxsdk
        from ptxsdk.node import log, service

        with contextlib.ExitStack() as held:
            try:
                config = self._config(**own)
                keys = None if self.key is None else (read_key(self.key),)
                log.start()
                records = None if self.audit is None else held.enter_context(ptxsdk.AuditFile(self.audit))
                running = service.Service(
                    config,
                    lambda: ptxsdk.Detector(
                        self.engine,
                        device=self.device,
                        backend=self.backend,
                        precision=self.precision.value,
                        profile=self.profile.value,
                        operating_point=self.operating_point,
                        trusted_keys=keys,
                        rollback=self.rollback,
                        audit=records,
                    ),
                )
            except PtxsdkError as error:
                _fail(error)
            if not running.run():
                raise typer.Exit(1)

    def _config(self, **own: Any) -> NodeConfig:
        from ptxsdk.node.config import NodeConfig, Peer

        return NodeConfig(
            forward=tuple(Peer.parse(text) for text in self.forward or ()),
            out=None if self.out is None else self.out.absolute(),
            formats=tuple(name.strip() for name in self.write.split(",") if name.strip()),
            profile=self.profile.value,
            aet=self.aet,
            tls=self._tls(),
            forward_tls=self.forward_tls,
            spool=self.spool,
            keep=self.keep,
            reserve_bytes=self.reserve * _MIB,
            max_object_bytes=self.max_object * _MIB,
            give_up_seconds=self.give_up * 3600,
            grace_seconds=self.grace,
            workers=self.workers,
            film_seconds=self.timeout,
            **own,
        )

    def _tls(self) -> Tls | None:
        from ptxsdk.node.config import Tls

        if self.tls_cert is not None and self.tls_key is not None:
            return Tls(self.tls_cert, self.tls_key, self.tls_ca)
        if (self.tls_cert, self.tls_key, self.tls_ca) != (None, None, None):
            raise NodeError("node.option", "TLS needs --tls-cert and --tls-key; --tls-ca goes with them")
        return None


HttpOption = Annotated[
    int | None, typer.Option("--http", metavar="PORT", help="Health, counters and page, on 127.0.0.1; 0: any port.")
]


@takes(ServiceOptions)
def node(
    service: ServiceOptions,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; 0.0.0.0: all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0: any.")] = 11112,
    allow: Annotated[
        list[str] | None, typer.Option("--allow", metavar="AET", help="Who may call; may be repeated. ANY: anybody.")
    ] = None,
    max_associations: Annotated[int, typer.Option("--max-associations", min=1, help="At one time.")] = 16,
    max_per_host: Annotated[int, typer.Option("--max-per-host", min=1, help="Of these, from one address.")] = 8,
    idle: Annotated[float, typer.Option("--idle", metavar="SECONDS", help="Cut off peers silent so long.")] = 30,
    http: HttpOption = 11113,
) -> None:
    """Take films by DICOM, send results by DICOM or leave them in a folder.

    Runs until SIGTERM or SIGINT; logs JSON lines on stderr. Listening on other addresses than this machine's own asks
    for --allow.
    """
    from ptxsdk.node.config import LOOPBACK

    if allow is None and host not in LOOPBACK:
        _fail(NodeError("node.option", f"--host {host} opens the node to others: say with --allow who may call"))
    service.run(
        host=host,
        port=port,
        allow=() if allow is None or allow == ["ANY"] else tuple(allow),
        max_associations=max_associations,
        max_per_host=max_per_host,
        idle_seconds=idle,
        http_port=http,
    )


@takes(ServiceOptions)
def watch(
    service: ServiceOptions,
    folder: Annotated[Path, path_argument(metavar="DIR", help="Folder that DICOM files are dropped into.")],
    remove: Annotated[bool, typer.Option("--remove", help="Remove a file once its film was read.")] = False,
    settle: Annotated[float, typer.Option("--settle", metavar="SECONDS", help="A file must stand still so long.")] = 2,
    http: HttpOption = None,
) -> None:
    """Take films from a folder that a unit drops them into; results go where those of the node do."""
    if not folder.is_dir():
        _fail(NodeError("node.option", f"{str(folder)!r} is not a folder"))
    service.run(watch=folder, remove_dropped=remove, settle_seconds=settle, http_port=http)


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


def _fail(error: PtxsdkError) -> NoReturn:
    typer.echo(str(error), err=True)
    usage = error.code in ("node.option", "detector.option")
    raise typer.Exit(2 if usage else 1) from error
