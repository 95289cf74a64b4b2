"""The decoding helper: same pixels, and nothing that a codec does reaches its host."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imagecodecs
import numpy as np
import psutil
import pytest
from dicom_files import code, dataset, encapsulated, film

from ptxsdk import InputError, Limits, read
from ptxsdk.deadline import Deadline
from ptxsdk.errors import DetectorError
from ptxsdk.readers import decoder, helper, read_as
from ptxsdk.readers.reading import Reading

PNG = bytes(imagecodecs.png_encode(film(bits=8)))
JPEG2000 = bytes(imagecodecs.jpeg2k_encode(film(), codecformat="j2k", reversible=True, bitspersample=12))


@pytest.fixture(autouse=True)
def no_helpers():
    helper.close()
    yield
    helper.close()


def behave(monkeypatch, tmp_path, body):
    """Replace the codec of the helpers started from here on by `body`."""
    source = Path(decoder.__file__).read_text()
    start, end = (
        source.index("    import imagecodecs\n    import numpy as np\n\n    if codec"),
        source.index("def main()"),
    )
    path = tmp_path / "decoder.py"
    path.write_text(source[:start] + textwrap.indent(textwrap.dedent(body), "    ") + "\n\n\n" + source[end:])
    monkeypatch.setattr(decoder, "__file__", str(path))


def gone(pid, seconds=10):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not psutil.pid_exists(pid):
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("content", [PNG, encapsulated(dataset(), JPEG2000, "1.2.840.10008.1.2.4.90")])
def test_the_pixels_are_those_of_the_codec_in_process(content):
    there, here = read(content), read(content, decode="in_process")
    assert helper.pids()
    assert there.pixels.dtype == here.pixels.dtype
    np.testing.assert_array_equal(there.pixels, here.pixels)


def test_one_helper_serves_film_after_film():
    read(PNG)
    first = helper.pids()
    assert code(read, PNG[:-30]) == "input.truncated"
    for _ in range(5):
        read(PNG)
    assert helper.pids() == first
    assert len(first) == 1


def test_nothing_is_started_for_films_that_need_no_codec():
    read(film(bits=8))
    read(PNG, decode="in_process")
    assert helper.pids() == []


def test_a_codec_that_refuses_says_so_and_lives_on():
    damaged = bytearray(imagecodecs.jpeg8_encode(film(bits=8)))
    at = damaged.index(b"\xff\xc4")
    damaged[at + 5 : at + 21] = b"\xff" * 16  # impossible Huffman codes
    read(PNG)
    before = helper.pids()
    with pytest.raises(InputError, match="refused") as caught:
        read(bytes(damaged))
    assert caught.value.code == "input.corrupt"
    assert helper.pids() == before


@pytest.mark.requirement("R-TIME-2")
@pytest.mark.parametrize(
    ("crash", "expected"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "input.corrupt"),
        ("raise MemoryError", "input.too_large"),
        ("import numpy\nreturn numpy.zeros((9, 9), 'c16')", "input.corrupt"),
        ("import numpy\nreturn numpy.zeros((1 << 14, 1 << 14), 'u1')", "input.corrupt"),
        ("import numpy\nreturn numpy.zeros((0, 5), 'u1')", "input.corrupt"),
        ("return bytearray(4 << 30)", "input.too_large"),
    ],
)
def test_a_codec_that_crashes_costs_its_film_and_no_other(monkeypatch, tmp_path, crash, expected):
    with monkeypatch.context() as patch:
        behave(patch, tmp_path, crash)
        assert code(read, PNG) == expected
    helper.close()
    assert read(PNG).pixels.shape == film(bits=8).shape


@pytest.mark.requirement("R-INPUT-6")
@pytest.mark.skipif(decoder.landlock() < 6, reason=f"this kernel has Landlock {decoder.landlock()}, not 6")
def test_a_codec_that_was_taken_over_reaches_nothing(monkeypatch, tmp_path):
    """No file, no connection, no process: each attempt leaves a 1 in the picture where the kernel forbids it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        attempts = f"""
            import numpy
            attempts = (
                lambda: open("/etc/passwd"),
                lambda: open({str(tmp_path / "new")!r}, "w"),
                lambda: os.unlink({str(tmp_path / "decoder.py")!r}),
                lambda: os.listdir("/"),
                lambda: open("/proc/{os.getpid()}/mem", "r+b"),
                lambda: os.posix_spawn("/bin/true", ["true"], {{}}),
                lambda: socket.create_connection(("127.0.0.1", {server.getsockname()[1]})),
                lambda: socket.socket().bind(("127.0.0.1", 0)),
                lambda: os.kill({os.getpid()}, signal.SIGCONT),
            )
            found = numpy.zeros({film(bits=8).shape}, numpy.uint8)
            for index, attempt in enumerate(attempts):
                try:
                    attempt()
                except PermissionError:
                    found[0, index] = 1
                except OSError as error:
                    found[0, index] = error.errno
                else:
                    found[0, index] = 255
            return found
        """
        with monkeypatch.context() as patch:
            behave(patch, tmp_path, attempts)
            answers = read(PNG).pixels[0, :9].tolist()
    assert answers == [1] * 9
    helper.close()


@pytest.mark.requirement("R-TIME-2")
@pytest.mark.parametrize(
    "hang", ["while True: pass", "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 60))\ntime.sleep(99)"]
)
def test_a_codec_that_hangs_is_killed(monkeypatch, tmp_path, hang):
    seen = []
    with monkeypatch.context() as patch:
        behave(patch, tmp_path, "import time\n" + hang)
        started = time.monotonic()
        start = helper._Helper._wait_until_ready
        patch.setattr(
            helper._Helper, "_wait_until_ready", lambda self, deadline: (seen.append(self), start(self, deadline))
        )
        assert code(read, PNG, limits=Limits(decode_seconds=0.3)) == "input.timeout"
        assert time.monotonic() - started < 20
    assert helper.pids() == []
    assert gone(seen[0]._process.pid)
    read(PNG)


def test_a_start_that_takes_longer_than_the_deadline_serves_the_next_film(monkeypatch, tmp_path):
    source = Path(decoder.__file__).read_text()
    slow = tmp_path / "decoder.py"
    slow.write_text(source.replace("    _tie_to(parent)\n", "    _tie_to(parent)\n    import time; time.sleep(1)\n"))
    monkeypatch.setattr(decoder, "__file__", str(slow))
    with pytest.raises(DetectorError) as caught:
        read_as(PNG, Reading(deadline=Deadline(0.1)))
    assert caught.value.code == "detector.timeout"
    (started,) = helper.pids()
    read_as(PNG, Reading(deadline=Deadline(30)))
    assert helper.pids() == [started]


def test_a_host_under_a_hard_limit_of_memory(tmp_path):
    (tmp_path / "film.png").write_bytes(PNG)
    program = f"""
        import resource
        from ptxsdk import read
        resource.setrlimit(resource.RLIMIT_AS, (64 << 30, 64 << 30))
        import ctypes  # a program that may not raise its limits, as a service has it
        class Header(ctypes.Structure):
            _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]
        none = (ctypes.c_uint32 * 6)()
        ctypes.CDLL(None).capset(ctypes.byref(Header(0x20080522, 0)), none)
        print(read({str(tmp_path / "film.png")!r}).pixels.shape)
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert ended.stdout == f"{film(bits=8).shape}\n"


def test_a_deadline_is_not_waited_beyond(monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        behave(patch, tmp_path, "import time\ntime.sleep(99)")
        with pytest.raises(DetectorError) as caught:
            read_as(PNG, Reading(deadline=Deadline(3)))
    assert caught.value.code == "detector.timeout"


def test_an_answer_that_lies_is_no_film(monkeypatch, tmp_path):
    read(PNG)
    with monkeypatch.context() as patch:
        for lie in (b"", b"x", b"[]", b'{"shape": [9999999, 9999999], "dtype": "|u1"}', b'{"shape": "no"}',
                    b'{"shape": [-1, 5], "dtype": "|u1"}', b'{"shape": [3, 3], "dtype": "|O1"}'):  # fmt: skip
            patch.setattr(helper._Helper, "_receive", lambda self, *_, lie=lie: self._answer(lie))
            assert code(read, PNG) == "input.corrupt"


def test_a_helper_killed_while_idle_is_replaced():
    read(PNG)
    (pid,) = helper.pids()
    os.kill(pid, signal.SIGKILL)
    assert gone(pid)  # reaped, too
    assert read(PNG).pixels.size
    assert helper.pids() != [pid]


def test_no_zombies_and_no_handles_are_left():
    def handles():
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    read(PNG)
    helper.close()
    before = handles()
    for _ in range(5):
        read(PNG)
        (pid,) = helper.pids()
        helper.close()
        assert gone(pid)
    assert handles() == before
    assert not [child for child in psutil.Process().children() if child.status() == psutil.STATUS_ZOMBIE]


def test_many_threads_share_few_helpers():
    with ThreadPoolExecutor(16) as pool:
        films = list(pool.map(lambda _: read(PNG).pixels.tobytes(), range(64)))
    assert len(set(films)) == 1
    assert 1 <= len(helper.pids()) <= max(2, os.cpu_count())


def test_it_outlives_the_thread_that_started_it():
    """Linux sends the parent-death signal when a thread ends."""
    thread = threading.Thread(target=read, args=(PNG,))
    thread.start()
    thread.join()
    time.sleep(0.3)
    (pid,) = helper.pids()
    read(PNG)
    assert helper.pids() == [pid]


def test_what_python_passes_over_in_its_path_is_passed_over(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, b"/opt/x", None])
    helper.close()
    assert read(PNG).shape == (33, 47)


def test_a_start_that_fails_in_any_way_says_so(monkeypatch, tmp_path):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    monkeypatch.setattr(sys, "path", [*sys.path, "lib"])
    (tmp_path / "gone").rmdir()
    helper.close()
    assert code(read, PNG) == "input.decoder"
    monkeypatch.undo()
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", lambda *_, **__: 1 / 0)
        assert code(read, PNG) == "input.decoder"
    assert read(PNG).shape == (33, 47)


def test_without_an_interpreter_it_says_so(monkeypatch):
    monkeypatch.setenv(helper.INTERPRETER, "/no/such/python")
    assert code(read, PNG) == "input.decoder"
    monkeypatch.setenv(helper.INTERPRETER, "/bin/true")
    assert code(read, PNG) == "input.decoder"


HOST = """
import os, sys, time
from ptxsdk import read
from ptxsdk.readers import helper
png = open(sys.argv[1], "rb").read()
read(png)
"""


def host(tmp_path, program, **options):
    """Run a program without a main guard."""
    (tmp_path / "film.png").write_bytes(PNG)
    (tmp_path / "host.py").write_text(HOST + textwrap.dedent(program))
    return subprocess.run(
        [sys.executable, str(tmp_path / "host.py"), str(tmp_path / "film.png")],
        capture_output=True, text=True, timeout=120, check=False, **options,
    )  # fmt: skip


def test_it_ends_with_a_host_that_ends(tmp_path):
    ended = host(tmp_path, "print(helper.pids()[0])")
    assert ended.stderr == ""
    assert gone(int(ended.stdout))


def test_it_ends_with_a_host_that_is_killed(tmp_path):
    ended = host(tmp_path, "print(helper.pids()[0], flush=True)\nos.kill(os.getpid(), 9)")
    assert ended.returncode == -signal.SIGKILL
    assert gone(int(ended.stdout))


def test_a_forked_child_starts_its_own(tmp_path):
    ended = host(
        tmp_path,
        """
        mine = helper.pids()
        child = os.fork()
        if child == 0:
            read(png)
            os._exit(0 if helper.pids() != mine else 1)
        assert os.waitpid(child, 0)[1] == 0
        read(png)
        assert helper.pids() == mine
        print("both")
        """,
    )
    assert (ended.stdout, ended.stderr) == ("both\n", "")


def test_it_works_without_standard_streams_and_with_sigchld_ignored(tmp_path):
    ended = host(
        tmp_path,
        """
        import signal
        helper.close()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        os.close(0)
        assert read(png).pixels.size
        helper.close()
        print("read")
        """,
    )
    assert (ended.stdout, ended.stderr) == ("read\n", "")


def test_it_ends_with_a_host_that_is_killed_while_a_codec_hangs(tmp_path, monkeypatch):
    """A helper in the midst of a codestream sees no closed socket."""
    behave(monkeypatch, tmp_path, "while True: pass")
    ended = host(
        tmp_path,
        f"""
        import psutil, threading
        from ptxsdk.readers import decoder
        helper.close()
        decoder.__file__ = {decoder.__file__!r}
        threading.Thread(target=read, args=(png,), daemon=True).start()
        while True:
            busy = [c for c in psutil.Process().children() if c.status() == "running" and c.cpu_times().user > 0.5]
            if busy:
                print(busy[0].pid, flush=True)
                os.kill(os.getpid(), 9)
            time.sleep(0.05)
        """,
    )
    assert gone(int(ended.stdout))
