"""Web: health, counters and page over HTTP, for this machine only.

It binds to 127.0.0.1 and answers only requests that name it so in their Host header, so that no web page in a browser
on this machine can read it by rebinding a name of its own (DNS rebinding).  It takes GET and HEAD, sends a strict
Content-Security-Policy, and its addresses hold random tokens only.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ptxsdk import readers
from ptxsdk.errors import NodeError, PtxsdkError
from ptxsdk.node import page, picture
from ptxsdk.node.store import Store

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_SHOWN = 100
_CONNECTIONS = 16
_REQUEST_SECONDS = 10.0
_NO_FILES_PAUSE = 0.2

Health = Callable[[], tuple[bool, dict[str, Any]]]


class Web:
    """The HTTP server.

    Parameters
    ----------
    port : int
        On 127.0.0.1; 0 takes a free one.
    store : Store
        What the page shows.
    health : callable, optional
        Returns whether all is well, and particulars.
    metrics : callable, optional
        Returns the counters as text.

    Raises
    ------
    NodeError
        ``node.listen``.
    """

    def __init__(
        self, port: int, store: Store, *, health: Health | None = None, metrics: Callable[[], str] | None = None
    ) -> None:
        try:
            self._server = _Server(("127.0.0.1", port), _Handler)
        except (OSError, OverflowError) as error:
            raise NodeError("node.listen", f"cannot listen on 127.0.0.1:{port}: {error}") from error
        self._server.store, self._server.health, self._server.metrics = store, health, metrics
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.2}, name="web", daemon=True
        )

    @property
    def port(self) -> int:
        """The port listened on."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Answer from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Answer no longer."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    store: Store
    health: Health | None
    metrics: Callable[[], str] | None

    def __init__(self, *arguments: Any) -> None:
        self._slots = threading.BoundedSemaphore(_CONNECTIONS)
        self.asking: dict[socket.socket, float] = {}  # connections that have not said what they want, and until when
        super().__init__(*arguments)

    def get_request(self) -> tuple[Any, Any]:
        try:
            return super().get_request()
        except OSError:  # no file handle is to be had, and the caller still waits: this would spin
            time.sleep(_NO_FILES_PAUSE)
            raise

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return self._slots.acquire(blocking=False)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.asking[request] = time.monotonic() + _REQUEST_SECONDS
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread is to be had
            self._end(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._end(request)

    def _end(self, request: Any) -> None:
        self.asking.pop(request, None)
        self._slots.release()

    def service_actions(self) -> None:
        """Cut off, at every turn of the server's loop, who takes too long to ask."""
        now = time.monotonic()
        for request, until in list(self.asking.items()):
            if now > until:
                with contextlib.suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: it is the browser that went away."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.0"  # one request a connection: nobody keeps a place by asking again
    server_version, sys_version = "ptxsdk", ""
    timeout = 5  # seconds of silence, or for an answer to be taken

    def do_GET(self) -> None:
        self.server.asking.pop(self.connection, None)
        port = self.server.server_address[1]
        if self.headers.get("Host", "").lower() not in {f"127.0.0.1:{port}", f"localhost:{port}"}:
            self._answer(403, "this address is not mine\n", "text/plain; charset=utf-8")
            return
        path = self.path.partition("?")[0]
        if path == "/":
            self._html(200, page.films_page(self.server.store.recent(_SHOWN), self.server.store.counts()))
        elif path[1:] in page.STATIC:
            self._answer(200, page.static(path[1:]), page.STATIC[path[1:]])
        elif match := re.fullmatch(r"/films/([0-9a-f]{16})(/pixels)?", path):
            self._film(match[1], pixels=bool(match[2]))
        elif path == "/healthz" and self.server.health is not None:
            well, particulars = self.server.health()
            self._answer(200 if well else 503, json.dumps(particulars) + "\n", "application/json")
        elif path == "/metrics" and self.server.metrics is not None:
            self._answer(200, self.server.metrics(), "text/plain; version=0.0.4; charset=utf-8")
        else:
            self._html(404, page.message_page("there is no such page"))

    do_HEAD = do_GET  # noqa: N815 - the name is the base class's

    def _film(self, token: str, *, pixels: bool) -> None:
        film = self.server.store.find(token)
        if film is None or (pixels and not film.files):
            self._html(404, page.message_page("there is no such film"))
        elif not pixels:
            self._html(200, page.film_page(film))
        else:
            try:
                body = picture.encode(readers.read(self.server.store.read(film)))
            except (PtxsdkError, OSError, MemoryError):
                self._html(404, page.message_page("this film cannot be shown"))
            else:
                self._answer(200, body, "application/octet-stream")

    def _html(self, status: int, text: str) -> None:
        self._answer(status, text, "text/html; charset=utf-8")

    def _answer(self, status: int, body: str | bytes, kind: str) -> None:
        content = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the name is the base class's
        """Log nothing: what a peer sends is not ours to repeat."""
