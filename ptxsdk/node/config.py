"""Config: everything the node is told, checked before anything starts."""

from __future__ import annotations

import re
import ssl
import threading
from dataclasses import dataclass, field
from pathlib import Path

from ptxsdk.detection import Profile
from ptxsdk.errors import NodeError
from ptxsdk.writers import DICOM, permitted

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Peer:
    """A DICOM application entity: AE title, host and port."""

    aet: str
    host: str
    port: int

    @property
    def name(self) -> str:
        """``AET@HOST:PORT``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.aet}@{host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Peer:
        """Return the peer that ``AET@HOST:PORT`` names; IPv6 addresses stand in brackets.

        Raises
        ------
        NodeError
            ``node.option``.
        """
        match = re.fullmatch(r"([^@]+)@(?:\[([0-9A-Fa-f:.]+)\]|([^@:\[\]\s]+)):(\d{1,5})", text)
        if match is None or not 0 < int(match[4]) < 65536:
            raise NodeError("node.option", f"{text!r} is not AET@HOST:PORT")
        return cls(check_aet(match[1]), match[2] or match[3], int(match[4]))


@dataclass(frozen=True)
class Tls:
    """Certificates of the node.

    Attributes
    ----------
    certificate, key : Path
        PEM; shown to whoever calls and to whoever is called.
    authority : Path or None
        PEM of the authorities that peers must be signed by.  Given: a caller without such a certificate is refused.
        None: any caller may come in, the traffic is encrypted only; called hosts are held against the system's list.
    """

    certificate: Path
    key: Path
    authority: Path | None = None

    def server(self) -> ssl.SSLContext:
        """Return the context for associations that come in."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._load(context)
        if self.authority is not None:
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def client(self) -> ssl.SSLContext:
        """Return the context for associations that go out: certificate and host name of the peer are checked."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self.authority is None:
            context.load_default_certs()
        self._load(context)
        return context

    def _load(self, context: ssl.SSLContext) -> None:
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self.certificate, self.key)
            if self.authority is not None:
                context.load_verify_locations(self.authority)
        except (OSError, ValueError) as error:
            raise NodeError("node.option", f"the certificates cannot be used: {error}") from error


@dataclass(frozen=True, kw_only=True)
class NodeConfig:
    """What the node does.

    Attributes
    ----------
    spool : Path
        Folder of the queue; films and results stand in it until they are delivered.
    aet : str
        AE title, called by modalities and calling the PACS.
    host, port : str, int or None
        Where to listen for DICOM; no port: no DICOM comes in.
    watch : Path or None
        Folder to take films from.
    remove_dropped : bool
        Remove a file from it once its film was read.
    settle_seconds : float
        A file there must stand still so long before it is taken.
    forward : tuple of Peer
        Where results go by C-STORE.
    out : Path or None
        Folder where results are left.
    formats : tuple of str
        Results, of "sc", "sr", "seg" and "gsps"; empty: the first three, as far as the profile permits them.
    profile : {"cade", "triage"}
        What results may show.
    allow : tuple of str
        AE titles that may call; empty: any.
    tls : Tls or None
        Certificates for associations that come in.
    forward_tls : bool
        Also for those that go out.
    http_port : int or None
        Health, counters and page, on 127.0.0.1.  0: any free port.  None: none.
    workers : int
        Films scored side by side.
    film_seconds : float
        A film that takes longer to score is given up, after three tries for good.
    max_associations, max_per_host : int
        Associations at one time, together and from one address.
    max_object_bytes : int
        Largest object taken.
    reserve_bytes : int
        Nothing is taken while the disk has less room than this.
    idle_seconds, transfer_seconds : float
        A peer that is silent so long, or takes so long for one object, is cut off.
    retry_seconds, retry_cap_seconds : float
        First and longest wait before results are sent again.
    give_up_seconds : float
        Results that nobody took while the node ran for so long are undeliverable.
    grace_seconds : float
        At a stop associations may go on so long, and after them films and deliveries in hand.
    keep : int
        Newest films that stay in the spool for the page after all is done with them.
    forget_seconds : float
        A film is remembered until the node ran for so long after its end, to know it when it is sent again.
    """

    spool: Path
    aet: str = "PTX"
    host: str = "127.0.0.1"
    port: int | None = None
    watch: Path | None = None
    remove_dropped: bool = False
    settle_seconds: float = 2.0
    forward: tuple[Peer, ...] = ()
    out: Path | None = None
    formats: tuple[str, ...] = ()
    profile: Profile = "cade"
    allow: tuple[str, ...] = ()
    tls: Tls | None = field(default=None, repr=False)
    forward_tls: bool = False
    http_port: int | None = None
    workers: int = 2
    film_seconds: float = 120.0
    max_associations: int = 16
    max_per_host: int = 8
    max_object_bytes: int = 128 << 20
    reserve_bytes: int = 256 << 20
    idle_seconds: float = 30.0
    transfer_seconds: float = 300.0
    retry_seconds: float = 2.0
    retry_cap_seconds: float = 300.0
    give_up_seconds: float = 72 * 3600.0
    grace_seconds: float = 20.0
    keep: int = 20
    forget_seconds: float = 30 * 24 * 3600.0

    def __post_init__(self) -> None:
        check_aet(self.aet)
        for aet in self.allow:
            check_aet(aet)
        if not self.formats:
            object.__setattr__(self, "formats", permitted(self.profile, ("sc", "sr", "seg")))
        for name in self.formats:
            if name not in DICOM:
                raise NodeError("node.option", f"format {name!r} is not one of {', '.join(DICOM)}")
            if not permitted(self.profile, (name,)):
                raise NodeError("node.option", f"the profile {self.profile} shows no location, so no {name}")
        if not self.forward and self.out is None:
            raise NodeError("node.option", "results have nowhere to go: name --forward or --out")
        if self.out is not None and not _is_utf8(self.out):
            raise NodeError("node.option", "the name of --out is not UTF-8")
        self._check_folders()
        if self.forward_tls and self.tls is None:
            raise NodeError("node.option", "--forward-tls needs --tls-cert and --tls-key")
        if len({peer.name for peer in self.forward}) < len(self.forward):
            raise NodeError("node.option", "the same destination is named twice")
        for name in ("workers", "max_associations", "max_per_host", "max_object_bytes"):
            if getattr(self, name) < 1:
                raise NodeError("node.option", f"{name} must be at least 1")
        for what in ("film", "idle", "transfer", "retry", "retry_cap", "give_up"):
            name = f"{what}_seconds"
            if not 0 < getattr(self, name) <= threading.TIMEOUT_MAX:
                raise NodeError("node.option", f"{name} must be above 0, and no more than can be waited")

    def _check_folders(self) -> None:
        """Refuse to take for films what the node itself writes, and to keep the queue where others' files are."""
        spool = self.spool.resolve()
        if self.out is not None and self.out.resolve().is_relative_to(spool):
            raise NodeError("node.option", "--out lies in --spool")
        if self.watch is None:
            return
        watched = self.watch.resolve()
        if spool.is_relative_to(watched):
            raise NodeError("node.option", "--spool lies in the folder that is watched")
        if watched.is_relative_to(spool):
            raise NodeError("node.option", "the folder that is watched lies in --spool")
        if self.out is not None and self.out.resolve().is_relative_to(watched):
            raise NodeError("node.option", "--out lies in the folder that is watched")

    @property
    def destinations(self) -> tuple[str, ...]:
        """Names of the destinations, as the queue keeps them."""
        return (*(peer.name for peer in self.forward), *(() if self.out is None else (f"folder:{self.out}",)))


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def check_aet(aet: str) -> str:
    """Return an AE title without the spaces around it, checked against PS3.5: 1 to 16 printable ASCII characters.

    Raises
    ------
    NodeError
        ``node.option``.
    """
    stripped = aet.strip(" ")
    if not re.fullmatch(r"[ -\[\]-~]{1,16}", stripped):
        raise NodeError("node.option", f"{aet!r} is no AE title: 1 to 16 printable characters, no backslash")
    return stripped
