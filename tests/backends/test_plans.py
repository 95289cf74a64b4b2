"""The plan cache: exactly the plan that was kept comes back, and anything else is logged and not used."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import resource
import stat
import struct
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from ptxsdk import WriterError
from ptxsdk.backends.plans import PlanCache, PlanKey
from ptxsdk.files import CACHE

KEY = PlanKey(
    gpu="NVIDIA RTX A2000",
    capability="8.6",
    tensorrt="tensorrt_rtx 1.7.1.116",
    driver="13.0 580.65.06",
    engine="ab" * 32,
    precision="fp16",
)
PLAN = bytes(range(256)) * 9
HEAD = 24  # magic 8, format 4, bytes of the key 4, bytes of the plan 8


@pytest.fixture
def cache(tmp_path):
    return PlanCache(tmp_path / "cache" / "plans")


@pytest.fixture
def kept(cache):
    """The path of a plan that is in the cache."""
    cache.write(KEY, PLAN)
    return cache.path(KEY)


def refused(cache, caplog, key=KEY):
    """Read, expect a miss with a warning, and return the warning."""
    caplog.clear()
    with caplog.at_level(logging.WARNING, "ptxsdk"):
        assert cache.read(key) is None
    (record,) = caplog.records
    return record.getMessage()


def test_a_plan_comes_back(cache, kept):
    assert cache.read(KEY) == PLAN
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]


def test_the_file_is_as_described(kept):
    content = kept.read_bytes()
    key = json.dumps(asdict(KEY), sort_keys=True, separators=(",", ":")).encode()
    expected = struct.pack("<8sIIQ", b"PTXPLAN\0", 2, len(key), len(PLAN)) + key
    assert content == expected + hashlib.sha256(PLAN).digest() + PLAN


def test_file_and_folder_are_this_users_alone_whatever_the_umask(tmp_path):
    before = os.umask(0o002)
    try:
        cache = PlanCache(tmp_path / "plans")
        cache.write(KEY, PLAN)
    finally:
        os.umask(before)
    assert stat.S_IMODE(cache.path(KEY).stat().st_mode) == 0o600
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700
    assert cache.read(KEY) == PLAN


def test_an_empty_cache_is_a_silent_miss(cache, caplog):
    assert cache.read(KEY) is None
    assert not caplog.records


@pytest.mark.requirement("R-TRUST-5")
def test_truncation_anywhere(cache, kept, caplog):
    content = kept.read_bytes()
    key = len(content) - len(PLAN) - 32 - HEAD
    boundaries = [0, 8, 12, 16, HEAD, HEAD + key, HEAD + key + 32, len(content)]
    lengths = {at + step for at in boundaries for step in (-1, 0, 1)} & set(range(len(content)))
    assert len(lengths) > 18
    for length in sorted(lengths):
        kept.write_bytes(content[:length])
        assert "cut short" in refused(cache, caplog), length
    kept.write_bytes(content + b"\0")
    assert "added to" in refused(cache, caplog)
    kept.write_bytes(content)
    assert cache.read(KEY) == PLAN


@pytest.mark.requirement("R-TRUST-5")
def test_a_flipped_bit_anywhere(cache, kept, caplog):
    content = kept.read_bytes()
    for at in range(len(content)):
        changed = bytearray(content)
        changed[at] ^= 1 << at % 8
        kept.write_bytes(changed)
        refused(cache, caplog)


def test_an_empty_plan_with_a_right_digest(cache, kept, caplog):
    content = kept.read_bytes()
    key = content[HEAD : -len(PLAN) - 32]
    kept.write_bytes(struct.pack("<8sIIQ", b"PTXPLAN\0", 1, len(key), 0) + key + hashlib.sha256(b"").digest())
    refused(cache, caplog)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gpu", "NVIDIA RTX A4000"),
        ("capability", "8.9"),
        ("tensorrt", "tensorrt_rtx 1.7.1.117"),
        ("driver", "13.1 590.10"),
        ("engine", "cd" * 32),
        ("precision", "int8"),
    ],
)
def test_a_foreign_plan(cache, kept, caplog, name, value):
    foreign = replace(KEY, **{name: value})
    here = cache.path(foreign)
    if here != kept:
        kept.rename(here)  # as if it had been put there
    message = refused(cache, caplog, foreign)
    assert f"{name} {getattr(KEY, name)!r}, here {value!r}" in message
    cache.write(foreign, PLAN[::-1])
    assert cache.read(foreign) == PLAN[::-1]


def test_an_update_takes_the_place_of_the_old_plan(cache, kept):
    updated = replace(KEY, tensorrt="tensorrt_rtx 1.8.0.1", driver="13.2")
    cache.write(updated, PLAN[::-1])
    assert list(kept.parent.iterdir()) == [kept]
    assert cache.read(updated) == PLAN[::-1]


@pytest.mark.parametrize("key", [b"[" * 4000, b"\xff" * 100, b"3", b"{}"], ids=["deep", "bytes", "number", "empty"])
def test_a_damaged_key(cache, kept, caplog, key):
    head = struct.pack("<8sIIQ", b"PTXPLAN\0", 1, len(key), len(PLAN))
    kept.write_bytes(head + key + hashlib.sha256(PLAN).digest() + PLAN)
    refused(cache, caplog)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
@pytest.mark.requirement("R-TRUST-5")
def test_a_file_that_others_can_write(cache, kept, caplog, mode):
    kept.chmod(mode)
    assert "others could have written it" in refused(cache, caplog)


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_folder_that_others_can_write(cache, kept, caplog, mode):
    kept.parent.chmod(mode)
    assert "others could have written the folder of plans" in refused(cache, caplog)


@pytest.mark.requirement("R-TRUST-5")
def test_what_belongs_to_another_user(cache, kept, caplog, monkeypatch):
    mine = kept.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    if mine:
        assert "others could have written the folder of plans" in refused(cache, caplog)
    else:  # what root wrote is trusted: root can do all things anyway
        assert cache.read(KEY) == PLAN
        os.chown(kept, 54321, -1)
        assert "others could have written it" in refused(cache, caplog)


@pytest.mark.requirement("R-TRUST-5")
def test_a_link_to_a_plan(cache, kept, caplog):
    kept.rename(kept.with_name("elsewhere"))
    kept.symlink_to("elsewhere")
    assert "cannot be read" in refused(cache, caplog)


def test_a_pipe_and_a_folder_in_the_place_of_a_plan(cache, kept, caplog):
    kept.unlink()
    os.mkfifo(kept)
    assert "not a regular file" in refused(cache, caplog)
    kept.unlink()
    kept.mkdir()
    refused(cache, caplog)


def test_a_folder_that_may_not_be_looked_into(cache, kept, caplog, monkeypatch):
    def denied(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "stat", denied)
    monkeypatch.setattr(os, "open", denied)
    assert "cannot be read: Permission denied" in refused(cache, caplog)


def test_a_file_in_the_place_of_the_folder_is_a_silent_miss(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    (tmp_path / "file").chmod(0o600)
    assert PlanCache(tmp_path / "file").read(KEY) is None
    assert not caplog.records


def test_a_full_disk_leaves_the_old_plan(cache, kept, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriterError) as raised:
        cache.write(KEY, PLAN[::-1])
    assert raised.value.code == "writer.failed"
    assert "No space left" in raised.value.message
    assert list(kept.parent.iterdir()) == [kept]
    assert cache.read(KEY) == PLAN


def test_a_file_size_limit_leaves_the_old_plan(cache, kept):
    """The operating system itself refuses, in the middle of the file."""
    program = (
        "import resource, signal, sys\n"
        "from ptxsdk import WriterError\n"
        "from ptxsdk.backends.plans import PlanCache, PlanKey\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "key = PlanKey(**eval(sys.argv[2]))\n"
        "try:\n"
        "    PlanCache(sys.argv[1]).write(key, bytes(5000))\n"
        "except WriterError as error:\n"
        "    print(error.code)\n"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    done = subprocess.run(
        [sys.executable, "-c", program, str(kept.parent), repr(asdict(KEY))], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "writer.failed"
    assert list(kept.parent.iterdir()) == [kept]
    assert cache.read(KEY) == PLAN


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriterError) as raised:
        PlanCache(tmp_path / "file" / "plans").write(KEY, PLAN)
    assert raised.value.code == "writer.failed"


def test_two_processes_writing_at_once(cache):
    """Whoever is read meanwhile, it is a whole plan of one of them."""
    program = (
        "import sys\n"
        "from ptxsdk.backends.plans import PlanCache, PlanKey\n"
        "key = PlanKey(**eval(sys.argv[2]))\n"
        "for _ in range(60):\n"
        "    PlanCache(sys.argv[1]).write(key, bytes([int(sys.argv[3])]) * 200_000)\n"
    )
    arguments = [sys.executable, "-c", program, str(cache.folder), repr(asdict(KEY))]
    writers = [subprocess.Popen([*arguments, str(number)]) for number in (1, 2)]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        plan = cache.read(KEY)
        if plan is not None:
            assert len(plan) == 200_000
            seen |= set(plan)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert seen <= {1, 2}
    assert seen
    assert list(cache.folder.iterdir()) == [cache.path(KEY)]


def test_where_plans_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(CACHE, raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert PlanCache().folder == tmp_path / ".cache/ptxsdk/plans"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert PlanCache().folder == tmp_path / ".cache/ptxsdk/plans"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert PlanCache().folder == tmp_path / "xdg/ptxsdk/plans"
    monkeypatch.setenv(CACHE, str(tmp_path / "named"))
    assert PlanCache().folder == tmp_path / "named" / "plans"
    assert PlanCache(tmp_path / "argument").folder == tmp_path / "argument"


def test_an_empty_variable_switches_the_cache_off(monkeypatch):
    monkeypatch.setenv(CACHE, "")
    cache = PlanCache()
    cache.write(KEY, PLAN)
    assert cache.folder is None
    assert cache.path(KEY) is None
    assert cache.read(KEY) is None


def test_a_user_without_a_home(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv(CACHE, raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", staticmethod(homeless))
    assert PlanCache().folder is None


def test_a_plan_of_no_bytes_is_not_kept(cache):
    with pytest.raises(WriterError):
        cache.write(KEY, b"")
    assert cache.read(KEY) is None
