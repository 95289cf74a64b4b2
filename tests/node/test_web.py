"""Health, counters and page: who may ask, what the answers say, and the page in a browser."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from dicom_files import content
from made import make_chest
from node_process import FLAGGED, dx, free_port, get, page_node, send, wait_for

from ptxsdk import readers
from ptxsdk.errors import OutOfScope
from ptxsdk.node import picture
from ptxsdk.node.page import film_page, films_page
from ptxsdk.node.store import Store
from ptxsdk.node.web import Web

CSP = "default-src 'none'"


@pytest.fixture
def node(shown):
    return shown


def text(node, path="/", **headers):
    status, _, body = get(node.url(path), headers=headers)
    assert status == 200
    return body.decode()


@pytest.mark.requirement("R-NODE-3")
def test_the_page_lists_films_and_names_nobody(node):
    page = text(node)
    assert "NOT FOR DIAGNOSTIC USE" in page
    assert page.count("<tr>") == 4
    assert "PNEUMOTHORAX FLAGGED" in page
    assert "gate.view" in page
    whole = page + text(node, f"/films/{node.film}") + text(node, f"/films/{node.refused}")
    assert "SECRET" not in whole.upper()
    assert "1.2.826" not in whole
    assert "normal" not in whole.lower()


def test_a_film_shows_result_findings_and_why_not(node):
    page = text(node, f"/films/{node.film}")
    assert 'id="overlay"' in page
    assert "gate.contrast" in page
    assert "region 1" in page
    assert "not flagged" in text(node, f"/films/{node.plain}")
    page = text(node, f"/films/{node.refused}")
    assert "not scored" in page
    assert "gate.view" in page
    assert "probability" not in page


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", ""])
def test_only_this_machine_by_name(node, host):
    """DNS rebinding: a foreign name that leads here still stands in the Host header."""
    for path in ("/", "/healthz", "/metrics", f"/films/{node.film}/pixels"):
        status, _, body = get(node.url(path), headers={"Host": host.format(port=node.http)})
        assert status == 403
        assert b"film" not in body
    assert text(node, Host=f"localhost:{node.http}")


def test_it_listens_on_loopback_only(node):
    own = subprocess.run(["hostname", "-I"], capture_output=True, text=True).stdout.split()
    if not own:
        pytest.skip("this machine has no other address")
    with pytest.raises(OSError):
        socket.create_connection((own[0], node.http), timeout=2)


@pytest.mark.parametrize("path", ["/", "/page.js", "/page.css", "/healthz", "/metrics", "/nothing"])
def test_every_answer_has_the_headers(node, path):
    _, headers, _ = get(node.url(path))
    assert headers["Content-Security-Policy"].startswith(CSP)
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "Access-Control-Allow-Origin" not in headers


@pytest.mark.parametrize(
    "path", ["/nothing", "/films/0123456789abcdef", "/films/../queue.sqlite", "/page.py", "/static/"]
)
def test_what_is_not_there(node, path):
    assert get(node.url(path))[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD"])
def test_nothing_can_be_changed(node, method):
    with socket.create_connection(("127.0.0.1", node.http), timeout=5) as sock:
        sock.sendall(f"{method} / HTTP/1.1\r\nHost: 127.0.0.1:{node.http}\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    assert answer.split()[1] == (b"200" if method == "HEAD" else b"501")
    assert method != "HEAD" or answer.endswith(b"\r\n\r\n")


def test_silent_clients_do_not_hold_it_up(node):
    held = [socket.create_connection(("127.0.0.1", node.http)) for _ in range(40)]
    wait_for(lambda: try_get(node), 30, "an answer")
    for sock in held:
        sock.close()


def test_clients_that_drip_lose_their_places(node):
    held = [socket.create_connection(("127.0.0.1", node.http)) for _ in range(16)]
    for sock in held:
        sock.sendall(b"GET /")
    cut, ended = 0, time.monotonic() + 20
    while cut < len(held) and time.monotonic() < ended:
        time.sleep(1)
        cut = sum(not drips(sock) for sock in held)
    assert cut == len(held)
    assert try_get(node)
    for sock in held:
        sock.close()


def drips(sock):
    try:
        sock.sendall(b"a")
    except OSError:
        return False
    return True


def test_a_place_is_given_back_where_the_system_gives_no_thread(tmp_path, monkeypatch):
    store = Store(tmp_path / "spool")
    web = Web(0, store, health=lambda: (True, {}))
    web.start()
    url = f"http://127.0.0.1:{web.port}/healthz"
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        for _ in range(20):
            with pytest.raises(OSError):
                get(url)
    assert get(url)[0] == 200
    web.stop()
    store.close()


def no_thread(_):
    raise RuntimeError("can't start new thread")


def test_a_system_without_file_handles_does_not_make_it_spin(tmp_path, monkeypatch):
    store = Store(tmp_path / "spool")
    web = Web(0, store, health=lambda: (True, {}))
    tries = []

    def accept():
        tries.append(1)
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(web._server, "socket", SimpleNamespace(accept=accept, fileno=web._server.socket.fileno))
        web.start()
        with socket.create_connection(("127.0.0.1", web.port)):
            time.sleep(1)
    assert 1 <= len(tries) < 10
    assert get(f"http://127.0.0.1:{web.port}/healthz")[0] == 200
    web.stop()
    store.close()


def try_get(node):
    try:
        return get(node.url("/healthz"), timeout=5)[0] == 200
    except OSError:
        return False


# --- the picture ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_the_picture_shows_what_the_window_shows(photometric):
    ds = dx(make_chest((64, 50)), 1, PhotometricInterpretation=photometric)
    ds.WindowCenter, ds.WindowWidth = 2000, 1500
    film = readers.read(content(ds))
    body = picture.encode(film)
    rows, columns, source_rows, source_columns, low, high = picture.HEADER.unpack_from(body)
    assert (rows, columns, source_rows, source_columns) == (64, 50, 64, 50)
    pixels = np.frombuffer(body, "<u2", offset=picture.HEADER.size).reshape(rows, columns)
    shown = np.clip((pixels.astype(float) - low) / (high - low), 0, 1)
    np.testing.assert_allclose(shown, film.display(film.pixels), atol=2e-4)
    assert pixels.min() == 0  # the whole range of the film, beyond its window, is there to be windowed
    assert pixels.max() == 65535


def test_a_large_film_is_made_small():
    film = readers.read(content(dx(np.tile(make_chest((512, 448)), (4, 3)), 1)))
    rows, columns, *source, _, _ = picture.HEADER.unpack_from(picture.encode(film))
    assert (rows, columns) == (1024, 672)
    assert source == [2048, 1344]


def test_what_films_say_is_escaped(tmp_path):
    store = Store(tmp_path / "spool")
    store.put(b"x", "1.2", "<script>")
    store.end(store.claim(), OutOfScope((("gate.view", "view <b>&"),)))
    film = store.recent(1)[0]
    page = films_page([film], store.counts()) + film_page(film)
    assert "<script>" not in page
    assert "view &lt;b&gt;&amp;" in page
    store.close()


def test_view_shows_a_spool_without_a_node(engine_file, tmp_path):
    with page_node(tmp_path, "--engine", engine_file) as node:
        assert send(node.port, dx(None, 9)) == 0
        node.wait_done(1)
        assert node.stop() == 0
    port = free_port()
    command = [sys.executable, "-m", "ptxsdk", "view", str(tmp_path / "spool"), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == f"http://127.0.0.1:{port}/\n"
        page = get(f"http://127.0.0.1:{port}/")[2].decode()
        assert page.count("<tr>") == 2
        assert get(f"http://127.0.0.1:{port}/healthz")[0] == 404
        process.terminate()
        assert process.wait(10) == 0
    assert subprocess.run([*command[:4], str(tmp_path / "none")], capture_output=True).returncode == 1


def test_a_film_that_left_the_spool(engine_file, tmp_path):
    with page_node(tmp_path, "--engine", engine_file, "--keep", 0) as node:
        assert send(node.port, dx(make_chest((512, 448), **FLAGGED), 7)) == 0
        node.wait_done(1, 30)
        film = node.events("scored")[0]["film"]
        wait_for(lambda: get(node.url(f"/films/{film}/pixels"))[0] == 404, 20, "tidying")
        assert "no longer in the spool" in text(node, f"/films/{film}")
        wait_for(lambda: not list((tmp_path / "spool" / "films").iterdir()), 20, "tidying")
        wait_for(lambda: not list((tmp_path / "spool" / "results").iterdir()), 20, "tidying")
