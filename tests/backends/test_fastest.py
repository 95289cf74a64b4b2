"""The choice of an arithmetic: by measurement, remembered, never one that is not offered."""

import json
import time

import pytest

from ptxsdk import BackendError
from ptxsdk.backends.fastest import fastest

SETTING = {"engine": "e", "runtime": "r 1", "device": "cpu", "threads": "2"}


class Network:
    def __init__(self, name, seconds):
        self.name, self.seconds, self.runs, self.closed = name, seconds, 0, False

    def infer(self):
        self.runs += 1
        time.sleep(self.seconds)

    def close(self):
        self.closed = True


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PTXSDK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "precision"


def choose(setting=SETTING, **seconds):
    made = {}

    def load(name):
        made[name] = Network(name, seconds[name])
        return made[name]

    candidates = {name: (lambda name=name: load(name)) for name in seconds}
    return fastest(candidates, setting), made


def test_the_fastest_is_taken_and_the_others_are_closed(folder):
    chosen, made = choose(fp32=0.004, fp16=0.003, int8=0.001)
    assert chosen is made["int8"]
    assert [network.closed for network in made.values()] == [True, True, False]


def test_a_less_exact_one_must_be_worth_it(folder):
    chosen, _ = choose(fp32=0.004, int8=0.004)
    assert chosen.name == "fp32"


def test_what_was_measured_is_remembered(folder):
    choose(fp32=0.004, int8=0.001)
    (note,) = folder.iterdir()
    assert json.loads(note.read_text())["chosen"] == "int8"
    chosen, made = choose(fp32=0.001, int8=0.004)
    assert chosen.name == "int8"
    assert set(made) == {"int8"}
    assert chosen.runs == 0


@pytest.mark.parametrize("changed", list(SETTING))
def test_another_setting_is_measured_anew(folder, changed):
    choose(fp32=0.004, int8=0.001)
    chosen, _ = choose(SETTING | {changed: "other"}, fp32=0.001, int8=0.004)
    assert chosen.name == "fp32"
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"chosen": "int4"}', b'{"chosen": ["int8"]}', b"\xff\xfe", b"[" * 4096, b'{"chosen": "bf16"}'],
)
def test_what_makes_no_sense_is_measured_anew(folder, content):
    choose(fp32=0.003, int8=0.001)
    (note,) = folder.iterdir()
    note.write_bytes(content)
    chosen, _ = choose(fp32=0.001, int8=0.003)
    assert chosen.name == "fp32"
    assert json.loads(note.read_text())["chosen"] == "fp32"


def test_what_does_not_run_is_left_out(folder):
    class Broken(Network):
        def infer(self):
            raise BackendError("backend.failed", "no such arithmetic")

    made = []

    def load(name, kind):
        made.append(kind(name, 0.001))
        return made[-1]

    chosen = fastest({"fp32": lambda: load("fp32", Network), "int8": lambda: load("int8", Broken)}, SETTING)
    assert chosen.name == "fp32"
    assert [network.closed for network in made] == [False, True]
    with pytest.raises(BackendError):
        fastest(
            {"fp32": lambda: load("fp32", Broken), "int8": lambda: load("int8", Network)}, SETTING | {"device": "x"}
        )


def test_what_was_remembered_and_does_not_load_is_measured_anew(folder):
    choose(fp32=0.003, int8=0.001)

    def gone():
        raise BackendError("backend.failed", "gone")

    assert fastest({"fp32": lambda: Network("fp32", 0), "int8": gone}, SETTING).name == "fp32"


def test_one_candidate_needs_no_measurement(folder):
    chosen, _ = choose(fp32=0.001)
    assert chosen.runs == 0
    assert not folder.exists()


def test_without_a_cache_it_is_measured_each_time(monkeypatch):
    monkeypatch.setenv("PTXSDK_CACHE", "")
    assert choose(fp32=0.003, int8=0.001)[0].name == "int8"
    assert choose(fp32=0.001, int8=0.003)[0].name == "fp32"


def test_a_cache_that_cannot_be_written_does_no_harm(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PTXSDK_CACHE", str(tmp_path / "file" / "cache"))
    assert choose(fp32=0.003, int8=0.001)[0].name == "int8"
