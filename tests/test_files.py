"""write_file: whole or not at all."""

from __future__ import annotations

import os

import pytest

from ptxsdk import WriterError
from ptxsdk.files import cache_folder, write_file


def test_writes_and_replaces(tmp_path):
    for content in (b"one", b"another"):
        write_file(tmp_path / "f", content)
        assert (tmp_path / "f").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
@pytest.mark.requirement("R-WRITE-1")
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failing):
    (tmp_path / "f").write_bytes(b"old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((os, "fsync") if failing == "fsync" else (type(tmp_path), "replace")), fail)
    with pytest.raises(WriterError) as raised:
        write_file(tmp_path / "f", b"new")
    assert raised.value.code == "writer.failed"
    assert "No space left" in raised.value.message
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f").read_bytes() == b"old"


@pytest.mark.parametrize("where", ["missing/f", "."])
def test_a_place_that_cannot_be_written(tmp_path, where):
    with pytest.raises(WriterError):
        write_file(tmp_path / where, b"new")


def test_the_cache_is_where_it_is_said_to_be(monkeypatch, tmp_path):
    monkeypatch.setenv("PTXSDK_CACHE", str(tmp_path))
    assert cache_folder("plans") == tmp_path / "plans"
    monkeypatch.setenv("PTXSDK_CACHE", "")
    assert cache_folder("plans") is None
    monkeypatch.delenv("PTXSDK_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder("plans") == tmp_path / "xdg" / "ptxsdk" / "plans"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder("plans") == tmp_path / "home" / ".cache" / "ptxsdk" / "plans"
