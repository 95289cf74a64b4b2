"""SCP: the DICOM listener.  C-ECHO, and C-STORE of CR, DX FOR PRESENTATION and Secondary Capture into the store.

pynetdicom speaks the protocol.  What it leaves unbounded is bounded here, since the network holds broken and hostile
peers: connections together and from one host, the time of a TLS handshake, of a PDU and of an object, the length of a
PDU before it is read, the size of an object while it comes in, and the memory of all objects that come in at a time.
DX FOR PROCESSING is not offered: a modality learns at the negotiation that it sends the wrong object.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from typing import Any

from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from pynetdicom import AE, _config, evt
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dsutils import create_file_meta, encode_file_meta
from pynetdicom.sop_class import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    SecondaryCaptureImageStorage,
    Verification,
)
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from ptxsdk.errors import InputError, NodeError, WriterError
from ptxsdk.node.config import NodeConfig
from ptxsdk.node.instance import instance_uid
from ptxsdk.node.log import event as log
from ptxsdk.node.metrics import Metrics
from ptxsdk.node.store import Store
from ptxsdk.readers.dicom import CODESTREAMS, NATIVE, RLE

SOP_CLASSES = (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    SecondaryCaptureImageStorage,
)
# Of what a caller offers for a context the first of these is taken: uncompressed where it can be, and lossless next.
_FIRST = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    RLELossless,
)
TRANSFER_SYNTAXES = [*_FIRST, *sorted({*NATIVE, RLE, *CODESTREAMS} - {*_FIRST})]

SUCCESS, OUT_OF_RESOURCES, MISMATCH, CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xA900, 0xC000

_MAX_PDU = 1 << 17
_MAX_DATA = 1 << 20  # of a P-DATA-TF
# Of any other PDU: pynetdicom makes objects of every item.  128 contexts of all 45 transfer syntaxes are 160 KB.
_MAX_OTHER = 1 << 18
_PDU_HEADER, _PDU_KINDS, _P_DATA = 6, range(1, 8), 4
_MAX_COMMAND = 1 << 13  # a C-STORE-RQ is of some 250 bytes
_NO_FILES_PAUSE = 0.2
_OBJECTS_IN_MEMORY = 4

_config.LOG_HANDLER_LEVEL = "none"  # its handlers would format every PDU


class Listener:
    """The listening application entity.

    Parameters
    ----------
    config : NodeConfig
        With a port.
    store : Store
        Takes the films.
    metrics : Metrics
        Counts.

    Raises
    ------
    NodeError
        ``node.listen`` or, for the certificates, ``node.option``.
    """

    def __init__(self, config: NodeConfig, store: Store, metrics: Metrics) -> None:
        self._config, self._store, self._metrics = config, store, metrics
        entity = AE(ae_title=config.aet)
        entity.maximum_pdu_size = _MAX_PDU
        entity.maximum_associations = config.max_associations
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = config.idle_seconds
        entity.require_called_aet = True
        entity.require_calling_aet = list(config.allow)
        entity.add_supported_context(Verification)
        for sop_class in SOP_CLASSES:
            entity.add_supported_context(sop_class, TRANSFER_SYNTAXES)
        self._entity = entity
        handlers = [
            (evt.EVT_C_ECHO, self._echo),
            (evt.EVT_C_STORE, self._take),
            (evt.EVT_ACCEPTED, self._count, ["accepted"]),
            (evt.EVT_REJECTED, self._count, ["rejected"]),
            (evt.EVT_ABORTED, self._count, ["aborted"]),
        ]
        try:
            self._server: _Server = entity.make_server(
                (config.host, config.port),
                evt_handlers=handlers,
                ssl_context=None if config.tls is None else config.tls.server(),
                server_class=_Server,
                request_handler=_Handler,
            )
        except (OSError, ValueError) as error:
            raise NodeError("node.listen", f"cannot listen on {config.host}:{config.port}: {error}") from error
        self._server.limits = _Limits(config, metrics)
        entity._servers.append(self._server)  # noqa: SLF001 - as AE.start_server does; shutdown removes it
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.2}, name="listener", daemon=True
        )

    @property
    def port(self) -> int:
        """The port listened on."""
        return int(self._server.server_address[1])

    @property
    def open(self) -> int:
        """Associations open now."""
        return self._server.limits.connections

    @property
    def alive(self) -> bool:
        """Whether it listens."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Listen from now on."""
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Listen no longer; let associations end for so long, then abort them."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        else:
            self._server.server_close()
        deadline = time.monotonic() + seconds
        while self.open and time.monotonic() < deadline:
            time.sleep(0.05)
        for association in self._server.active_associations:
            association.abort()

    # --- events; each runs on the thread of its association -----------------------------------------------------------

    def _count(self, event: Any, outcome: str) -> None:
        self._metrics.add("ptxsdk_associations_total", outcome=outcome)
        if outcome != "accepted":
            log("association", level=logging.WARNING, outcome=outcome, **_peer(event.assoc))

    def _echo(self, event: Any) -> int:
        event.assoc.dimse.done()
        return SUCCESS

    def _take(self, event: Any) -> int:
        started = time.monotonic()
        try:
            status, outcome, token, size = self._store_object(event)
        except WriterError as error:
            status, outcome, token, size = OUT_OF_RESOURCES, "no_room", "", 0
            log("no_room", level=logging.ERROR, code=error.code)
        finally:
            event.assoc.dimse.done()
        self._metrics.add("ptxsdk_received_total", outcome=outcome)
        if outcome in ("new", "again"):
            self._metrics.add("ptxsdk_received_bytes_total", size)
        seconds = round(time.monotonic() - started, 4)
        log("received", film=token, outcome=outcome, bytes=size, seconds=seconds, **_peer(event.assoc))
        return status

    def _store_object(self, event: Any) -> tuple[int, str, str, int]:
        request = event.request
        sop_class, uid = UID(request.AffectedSOPClassUID), UID(request.AffectedSOPInstanceUID)
        if not uid.is_valid or sop_class != event.context.abstract_syntax:
            return MISMATCH, "mismatch", "", 0
        meta = create_file_meta(
            sop_class_uid=sop_class, sop_instance_uid=uid, transfer_syntax=UID(event.context.transfer_syntax)
        )
        content = b"".join((b"\0" * 128, b"DICM", encode_file_meta(meta), request.DataSet.getvalue()))
        try:
            found = instance_uid(content)
        except InputError as error:
            log("not_understood", level=logging.WARNING, code=error.code)
            return CANNOT_UNDERSTAND, "not_understood", "", len(content)
        if found != uid:
            return MISMATCH, "mismatch", "", len(content)
        outcome, token = self._store.put(content, str(uid), event.assoc.requestor.ae_title.strip())
        return SUCCESS, outcome, token, len(content)


def _peer(association: Any) -> dict[str, Any]:
    return {"peer": association.requestor.address_info.address, "aet": association.requestor.ae_title.strip()}


# --- bounds -----------------------------------------------------------------------------------------------------------


class _Limits:
    """What all connections share: how many there are, and the memory of what they receive."""

    def __init__(self, config: NodeConfig, metrics: Metrics) -> None:
        self.config, self.metrics = config, metrics
        self._lock = threading.Lock()
        self._hosts: dict[str, int] = {}
        self._memory = _OBJECTS_IN_MEMORY * config.max_object_bytes

    @property
    def connections(self) -> int:
        with self._lock:
            return sum(self._hosts.values())

    def enter(self, host: str) -> bool:
        with self._lock:
            here = self._hosts.get(host, 0)
            # One more than the associations: pynetdicom says the refusal in DICOM where it can.
            if here >= self.config.max_per_host or sum(self._hosts.values()) > self.config.max_associations:
                return False
            self._hosts[host] = here + 1
            return True

    def leave(self, host: str) -> None:
        with self._lock:
            self._hosts[host] -= 1
            if not self._hosts[host]:
                del self._hosts[host]

    def take(self, size: int) -> bool:
        with self._lock:
            if size > self._memory:
                return False
            self._memory -= size
            return True

    def give(self, size: int) -> None:
        with self._lock:
            self._memory += size


class _Server(ThreadedAssociationServer):
    """Accepts connections within the limits; a TLS handshake holds up nobody but its own thread."""

    daemon_threads = True
    request_queue_size = 64
    limits: _Limits

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            client, address = self.socket.accept()
        except OSError:  # no file handle is to be had, and the caller still waits: this would spin
            time.sleep(_NO_FILES_PAUSE)
            raise
        client.settimeout(self.limits.config.idle_seconds)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return client, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        if self.limits.enter(client_address[0]):
            return True
        self.limits.metrics.add("ptxsdk_associations_total", outcome="over_limit")
        log("association", level=logging.WARNING, outcome="over_limit", peer=client_address[0])
        return False

    def process_request(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread is to be had
            self.limits.leave(client_address[0])
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            if self.ssl_context is not None:
                request = self.ssl_context.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
                request.do_handshake()
            self.finish_request(request, client_address)
        except OSError:
            self.limits.metrics.add("ptxsdk_associations_total", outcome="no_handshake")
            log("association", level=logging.WARNING, outcome="no_handshake", peer=client_address[0])
        except Exception:  # one association's trouble is not the node's
            logging.getLogger("ptxsdk.node").exception("association_broke")
        finally:
            self.limits.leave(client_address[0])
            self.shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        log("association_broke", level=logging.ERROR)


class _Handler(RequestHandler):
    """Runs one association to its end."""

    server: _Server

    def handle(self) -> None:
        association = self._create_association()
        association.name = f"AcceptorThread@{id(association)}"  # pynetdicom finds its associations by this word
        BoundedSocket.of(association)
        association.dimse = _Dimse(association, self.server.limits)
        evt.trigger(association, evt.EVT_CONN_OPEN, {"address": self.client_address})
        try:
            association.start()
            association.join()
        finally:
            association.dimse.done()
            association.dul.join(self.server.limits.config.idle_seconds)


class BoundedSocket(AssociationSocket):
    """Reads a PDU in bounded time and never one that is too long."""

    _kind: int | None = None  # of the PDU whose header was read last; None: a header comes next

    @staticmethod
    def of(association: Any) -> Any:
        """Make it the socket of an association: pynetdicom makes its own, and asks nobody of which class."""
        association.dul.socket.__class__ = BoundedSocket
        return association.dul.socket.socket

    def recv(self, nr_bytes: int) -> bytearray:
        """Return as many bytes, fewer where the connection was closed; else an OSError."""
        kind, self._kind = self._kind, None
        if nr_bytes > (_MAX_DATA if kind == _P_DATA else _MAX_OTHER):
            raise OSError("the PDU is too long")
        found = bytearray(nr_bytes)
        seconds = self.assoc.network_timeout
        view, filled, deadline = memoryview(found), 0, time.monotonic() + seconds
        try:
            while filled < nr_bytes:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                self.socket.settimeout(left)
                count = self.socket.recv_into(view[filled:])
                if not count:
                    break
                filled += count
        finally:
            view.release()
            with contextlib.suppress(OSError):
                self.socket.settimeout(seconds)
        del found[filled:]
        if kind is None and filled == _PDU_HEADER and found[0] in _PDU_KINDS:  # pynetdicom reads on after these alone
            self._kind = found[0]
        return found


class _Dimse(DIMSEServiceProvider):
    """Counts what comes in, and ends the association before it is too much."""

    def __init__(self, association: Any, limits: _Limits) -> None:
        super().__init__(association)
        self._limits = limits
        self._lock = threading.Lock()
        self._held = 0
        self._size = self._command = 0
        self._deadline = 0.0
        self._refused = False
        self.message: Any = None

    def receive_primitive(self, primitive: Any) -> None:
        if self._refused:
            return
        config = self._limits.config
        values = [value for _, value in primitive.presentation_data_value_list]
        size = sum(map(len, values))
        if self.message is None:
            self._size, self._command, self._deadline = 0, 0, time.monotonic() + config.transfer_seconds
        self._size += size
        self._command += sum(len(value) for value in values if value and value[0] & 1)  # PS3.8 E.2
        reason = ""
        if self._size > config.max_object_bytes:
            reason = "too_large"
        elif self._command > _MAX_COMMAND:  # pydicom makes an object of every element, were it of 8 bytes
            reason = "command_too_large"
        elif time.monotonic() > self._deadline:
            reason = "too_slow"
        elif self.msg_queue.qsize() > 1:
            reason = "no_answer_awaited"
        elif not self._limits.take(size):
            reason = "no_memory"
        if reason:
            self._refused = True
            self.message = None
            self.done()
            self._limits.metrics.add("ptxsdk_received_total", outcome=reason)
            log("cut_off", level=logging.WARNING, reason=reason, bytes=self._size, **_peer(self.assoc))
            self.dul.event_queue.put("Evt19")  # as for an invalid PDU: abort
            return
        with self._lock:
            self._held += size
        super().receive_primitive(primitive)

    def done(self) -> None:
        """Give back the memory of what was received."""
        with self._lock:
            held, self._held = self._held, 0
        self._limits.give(held)
