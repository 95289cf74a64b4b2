"""The command line's contract: JSON lines and nothing else on stdout, exit statuses, files written whole."""

from __future__ import annotations

import errno
import inspect
import json
import os
import pty
import subprocess
import sys
import threading
import typing
from pathlib import Path

import cv2
import numpy as np
import pytest
import typer
from made import make_chest
from typer.testing import CliRunner

import ptxsdk
from ptxsdk.cli import app
from ptxsdk.cli.predict import find_films
from ptxsdk.errors import DetectorError

FLAGGED = {"blob": (250, 150, 60)}


@pytest.fixture
def folder(tmp_path, tiny_engine):
    (tmp_path / "tiny.ptxengine").write_bytes(tiny_engine)
    films = tmp_path / "films"
    (films / "more").mkdir(parents=True)
    cv2.imwrite(str(films / "a.png"), make_chest(**FLAGGED))
    cv2.imwrite(str(films / "b.png"), make_chest())
    cv2.imwrite(str(films / "more" / "a.png"), make_chest((500, 500)))
    (films / "notes.txt").write_text("not looked at")
    (films / ".hidden.png").write_bytes(b"not looked at")
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def predict(folder, *arguments):
    return run("predict", "--engine", folder / "tiny.ptxengine", *arguments)


def lines(result):
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.requirement("R-CLI-1")
def test_json_is_one_object_a_line(folder):
    result = predict(folder, folder / "films", "--json")
    assert result.exit_code == 0, result.output
    body = lines(result)
    assert [one["file"] for one in body] == [str(folder / "films" / n) for n in ("a.png", "b.png", "more/a.png")]
    assert [one["flagged"] for one in body] == [True, False, False]
    region = body[0]["regions"][0]
    x0, y0, x1, y1 = region["box"]
    assert x0 < 150 < x1
    assert y0 < 250 < y1
    assert region["side"] == "right"
    assert region["area_mm2"] is None


@pytest.mark.requirement("R-CLI-2")
def test_a_failing_file_never_stops_the_others(folder):
    bad = folder / "bad.png"
    bad.write_bytes(b"no film")
    blank = folder / "blank.png"
    cv2.imwrite(str(blank), np.full((400, 400), 9, np.uint8))
    result = predict(folder, bad, folder / "missing.dcm", blank, folder / "films" / "b.png", "--json")
    assert result.exit_code == 1
    body = lines(result)
    assert [one.get("error", {}).get("code") for one in body] == [
        "input.unknown_format",
        "input.not_found",
        "gate.constant",
        None,
    ]
    assert body[0].keys() == {"file", "error"}
    assert body[0]["error"].keys() == {"code", "message"}


def test_force_scores_what_the_gate_refuses_and_marks_it(folder):
    turned = folder / "turned.png"
    cv2.imwrite(str(turned), np.rot90(make_chest(**FLAGGED), 2))
    films = (turned, folder / "films" / "b.png")
    result = predict(folder, *films, "--json")
    assert result.exit_code == 1
    assert lines(result)[0]["error"]["code"] == "gate.rotation"
    assert lines(result)[1]["forced"] is False
    result = predict(folder, *films, "--json", "--force")
    assert result.exit_code == 0
    assert [one["forced"] for one in lines(result)] == [True, False]
    failed = [check["code"] for check in lines(result)[0]["quality"]["checks"] if check["status"] == "fail"]
    assert failed == ["gate.rotation"]
    shown = predict(folder, turned, "--force").output
    assert "GATE OVERRIDDEN  gate.rotation" in shown
    # What is no film stays none.
    (folder / "bad.png").write_bytes(b"no film")
    result = predict(folder, folder / "bad.png", "--json", "--force")
    assert lines(result)[0]["error"]["code"] == "input.unknown_format"


def test_folders_are_searched_by_content(folder, tmp_path):
    import shutil

    from pydicom.data import get_testdata_file

    found = folder / "mixed"
    (found / ".git").mkdir(parents=True)
    chest = folder / "films" / "b.png"
    shutil.copy(get_testdata_file("RG1_J2KI.dcm", download=False), found / "1.2.840.113619.2.66.12345")
    shutil.copy(chest, found / "scan.ima")
    shutil.copy(chest, found / ".git" / "object.png")
    shutil.copy(chest, found / "b.png.overlay.png")
    for name in ("README", "DICOMDIR", "notes.txt"):
        (found / name).write_text("not a film")
    result = predict(folder, found, "--json")
    assert result.exit_code == 0, result.output
    assert [one["file"] for one in lines(result)] == [str(found / n) for n in ("1.2.840.113619.2.66.12345", "scan.ima")]


def test_a_folder_without_a_film_is_a_failure(folder):
    (folder / "empty").mkdir()
    result = predict(folder, folder / "empty", folder / "films" / "b.png", "--json")
    assert result.exit_code == 1
    first, second = lines(result)
    assert first["error"]["code"] == "input.not_found"
    assert second["flagged"] is False


def test_out_may_lie_in_the_folder_that_is_scored(folder):
    films = folder / "films"
    for _ in range(2):
        assert predict(folder, films, "--out", films / "results").exit_code == 0


def test_a_path_that_cannot_be_stops_no_other(folder):
    result = predict(folder, "x" * 300, folder / "films" / "b.png", "--json")
    assert result.exit_code == 1
    assert ["error" in one for one in lines(result)] == [True, False]


def test_decoding_is_part_of_the_time(folder):
    (body,) = lines(predict(folder, folder / "films" / "b.png", "--json"))
    times = body["timings_ms"]
    assert times["read"] > 0.1
    assert times["total"] >= times["read"] + times["network"]


@pytest.mark.requirement("R-CLI-2")
def test_a_defect_of_ours_stops_no_other_film(folder, monkeypatch):
    from ptxsdk import readers

    real = readers.read_as

    def broken(source, *rest):
        if "a.png" in str(source):
            raise ZeroDivisionError("a defect")
        return real(source, *rest)

    monkeypatch.setattr(readers, "read_as", broken)
    result = predict(folder, folder / "films", "--json")
    assert result.exit_code == 1
    assert [one.get("error", {}).get("code") for one in lines(result)] == [
        "detector.internal",
        None,
        "detector.internal",
    ]


def test_a_defect_of_ours_at_the_start_is_no_usage_error(folder, monkeypatch):
    def broken(*_, **__):
        raise DetectorError("detector.internal", "a defect")

    monkeypatch.setattr(ptxsdk, "Detector", broken)
    result = run("verify", str(folder / "tiny.ptxengine"), "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"]["code"] == "detector.internal"


def test_files_are_written_for_every_film_with_names_of_their_own(folder):
    out = folder / "new" / "out"
    assert predict(folder, folder / "films", "--out", out).exit_code == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "a.png.json",
        "a.png.overlay.png",
        "b.png.json",
        "b.png.overlay.png",
        "more__a.png.json",
        "more__a.png.overlay.png",
    ]
    assert json.loads((out / "a.png.json").read_text())["flagged"] is True
    assert cv2.imread(str(out / "a.png.overlay.png")) is not None


def test_the_same_file_twice_gets_two_results(folder):
    film, out = folder / "films" / "a.png", folder / "out"
    assert predict(folder, film, film, "--out", out, "--write", "json").exit_code == 0
    assert sorted(path.name for path in out.iterdir()) == ["a.png-2.json", "a.png.json"]


@pytest.mark.parametrize("letter", ["x", "ü", "胸", "\udcff"])
def test_a_film_deep_in_folders_of_long_names_gets_results(folder, letter):
    film = (folder / "films" / "b.png").read_bytes()
    length = 60 // len(os.fsencode(letter))
    deep = (folder / "films").joinpath(*[letter * length] * 5)
    deep.mkdir(parents=True)
    for name in ("one.png", "two.png"):
        (deep / name).write_bytes(film)
    found = []
    for out in (folder / "first", folder / "second"):
        result = predict(folder, folder / "films", "--out", out)
        assert result.exit_code == 0, result.output
        found.append(sorted(os.fsencode(path.name) for path in out.iterdir()))
    assert found[0] == found[1]
    assert len(found[0]) == 5 * 2
    shortened = [name for name in found[0] if name.startswith(os.fsencode(f"{letter * length}__{letter}"))]
    assert len(shortened) == 2 * 2
    assert all(200 < len(name) <= 255 for name in shortened)
    if letter != "\udcff":
        assert [name.decode() for name in shortened]  # no character is cut


def test_only_names_that_are_too_long_are_shortened(tmp_path):
    names = ["x" * 243, "x" * 244, "x" * 243 + "y", "ü" * 121 + "x", "ü" * 121 + "xx"]
    for name in names:
        (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\n")
    found = {path.name: name for path, name in find_films([tmp_path]) if isinstance(name, str)}
    assert [found[name] == name for name in names] == [True, False, False, True, False]
    assert len(set(found.values())) == len(names)
    twice = [name for _, name in find_films([tmp_path / names[0], tmp_path / names[0]])]
    assert twice[0] == names[0] != twice[1]
    assert len(twice[1]) == 243


def test_triage_writes_no_location(folder):
    out = folder / "out"
    result = predict(folder, folder / "films" / "a.png", "--profile", "triage", "--json", "--out", out)
    assert result.exit_code == 0
    assert lines(result)[0]["flagged"] is True
    assert lines(result)[0]["regions"] == []
    assert [path.name for path in out.iterdir()] == ["a.png.json"]
    assert json.loads((out / "a.png.json").read_text())["regions"] == []


def test_dicom_results_stand_beside_each_other(folder):
    from dicom_files import content
    from dicom_results import chest_dataset

    (folder / "c.dcm").write_bytes(content(chest_dataset()))
    out = folder / "out"
    result = predict(folder, folder / "c.dcm", "--out", out, "--write", "overlay,json,sc,sr,seg,gsps", "--json")
    assert result.exit_code == 0, result.output
    names = ["c.dcm.gsps.dcm", "c.dcm.json", "c.dcm.overlay.png", "c.dcm.sc.dcm", "c.dcm.seg.dcm", "c.dcm.sr.dcm"]
    assert sorted(path.name for path in out.iterdir()) == names
    again = predict(folder, out, folder / "c.dcm", "--json")  # results are no films
    assert [line.get("error", {}).get("code") for line in lines(again)] == ["input.not_found", None]


def test_in_triage_the_permitted_dicom_results_are_written(folder):
    from dicom_files import content
    from dicom_results import chest_dataset

    (folder / "c.dcm").write_bytes(content(chest_dataset()))
    out = folder / "out"
    result = predict(folder, folder / "c.dcm", "--profile", "triage", "--out", out, "--write", "json,sc,sr")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == ["c.dcm.json", "c.dcm.sc.dcm", "c.dcm.sr.dcm"]


def test_dicom_results_of_a_picture_fail_and_leave_nothing(folder):
    out = folder / "out"
    result = predict(folder, folder / "films" / "a.png", "--out", out, "--write", "json,sc", "--json")
    assert result.exit_code == 1
    assert lines(result)[0]["error"]["code"] == "writer.source"
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("at", ["c.dcm.overlay.png", "c.dcm.sr.dcm", "c.dcm.json"])
def test_a_film_whose_results_are_not_all_there_has_no_json_and_nothing_else(folder, at):
    from dicom_files import content
    from dicom_results import chest_dataset

    (folder / "c.dcm").write_bytes(content(chest_dataset()))
    out = folder / "out"
    (out / at).mkdir(parents=True)
    (out / "c.dcm.notes").write_text("not of this run")
    result = predict(folder, folder / "c.dcm", "--out", out, "--write", "json,overlay,sc,sr", "--json")
    assert result.exit_code == 1
    assert lines(result)[0]["error"]["code"] == "writer.failed"
    assert {path.name for path in out.iterdir()} == {at, "c.dcm.notes"}


@pytest.mark.parametrize(("refused", "left"), [(b"{", []), (b"\x89PNG", ["a.png.overlay.png"])])
def test_a_full_disk_leaves_no_json_of_an_earlier_run(folder, monkeypatch, refused, left):
    film, out = folder / "films" / "a.png", folder / "out"
    real = os.fsync

    def full(descriptor):
        if Path(f"/proc/self/fd/{descriptor}").read_bytes().startswith(refused):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    assert predict(folder, film, "--out", out).exit_code == 0
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        result = predict(folder, film, "--out", out, "--json")
    assert lines(result)[0]["error"]["code"] == "writer.failed"
    assert [path.name for path in out.iterdir()] == left
    assert predict(folder, film, "--out", out).exit_code == 0
    assert sorted(path.name for path in out.iterdir()) == ["a.png.json", "a.png.overlay.png"]


@pytest.mark.requirement("R-WORDS-1")
def test_the_text_form_says_flagged_or_not_flagged_and_never_normal(folder):
    result = predict(folder, folder / "films")
    assert result.exit_code == 0
    assert "PNEUMOTHORAX FLAGGED" in result.stdout
    assert "not flagged" in result.stdout
    assert "Not a medical device" in result.stdout
    assert "normal" not in result.stdout.lower()
    assert "no pneumothorax" not in result.stdout.lower()


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict"],
        ["predict", "x.dcm", "--precision", "fp8"],
        ["predict", "x.dcm", "--timeout", "0"],
        ["predict", "x.dcm", "--timeout", "nan"],
        ["predict", "x.dcm", "--profile", "diagnose"],
        ["predict", "x.dcm", "--device", "tpu"],
        ["predict", "x.dcm", "--write", "overlay"],
        ["predict", "x.dcm", "--out", "o", "--write", "tattoo"],
        ["predict", "x.dcm", "--out", "o", "--write", "overlay", "--profile", "triage"],
        ["predict", "x.dcm", "--out", "o", "--write", "sc,seg", "--profile", "triage"],
        ["predict", "x.dcm", "--out", "o", "--write", "gsps", "--profile", "triage"],
        ["predict", "x.dcm", "--no-such-option"],
        ["verify", "--key", "no-such-key"],
        ["verify", "--device", "tpu"],
        ["bench", "--repeats", "0"],
        ["bench", "--device", "tpu"],
        ["no-such-command"],
    ],
)
@pytest.mark.requirement("R-CLI-1")
def test_usage_errors_exit_with_two(folder, arguments, monkeypatch):
    monkeypatch.chdir(folder)
    if arguments[0] in ("predict", "bench"):
        arguments = [arguments[0], "--engine", "tiny.ptxengine", *arguments[1:]]
    if arguments[0] == "verify":
        arguments = ["verify", "tiny.ptxengine", *arguments[1:]]
    assert run(*arguments).exit_code == 2
    assert not (folder / "o").exists() or not list((folder / "o").iterdir())


def path_arguments():
    """Return every argument and option of the command line that takes a path, as one gives it."""
    found = []
    for name, command in typer.main.get_command(app).commands.items():
        hints = typing.get_type_hints(command.callback)
        for parameter in command.params:
            if "pathlib" in repr(hints.get(parameter.name)):
                found.append([name, *(option for option in parameter.opts if option.startswith("--"))])
    return found


@pytest.mark.parametrize("argument", path_arguments(), ids=" ".join)
def test_an_empty_path_is_a_usage_error(tmp_path, monkeypatch, argument):
    monkeypatch.chdir(tmp_path)
    result = run(*argument, "")
    assert result.exit_code == 2
    assert "the path is empty" in result.output
    assert list(tmp_path.iterdir()) == []


def test_an_empty_shell_variable_is_not_the_current_folder(folder, monkeypatch):
    assert len(path_arguments()) > 30
    monkeypatch.chdir(folder / "films")
    before = sorted(Path().rglob("*"))
    for arguments in (["", "--json"], ["b.png", "", "--json"], ["b.png", "--json", "--out", ""]):
        result = predict(folder, *arguments)
        assert (result.exit_code, result.stdout) == (2, "")
    assert sorted(Path().rglob("*")) == before
    assert len(lines(predict(folder, ".", "--json"))) == 3


def test_an_engine_that_cannot_be_used_fails_every_film(folder):
    damaged = bytearray((folder / "tiny.ptxengine").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (folder / "damaged.ptxengine").write_bytes(damaged)
    result = run("predict", "--engine", folder / "damaged.ptxengine", folder / "films", "--json")
    assert result.exit_code == 1
    assert [one["error"]["code"] for one in lines(result)] == ["engine.corrupt"] * 3


def test_inspect(folder, tiny_engine):
    result = run("inspect", folder / "tiny.ptxengine", "--json")
    assert result.exit_code == 0
    body = json.loads(result.stdout)
    assert body["name"] == "tiny"
    assert body["operating_points"][0]["sensitivity"]["n"] == 100
    text = run("inspect", folder / "tiny.ptxengine")
    assert text.exit_code == 0
    assert "balanced *" in text.stdout
    assert "0.900 (0.800-0.950, n=100)" in text.stdout


def test_verify(folder):
    result = run("verify", folder / "tiny.ptxengine", "--json")
    assert result.exit_code == 0, result.output
    body = json.loads(result.stdout)
    assert body["golden"] == 1
    assert body["signature"] == "none"


def test_verify_with_a_key(folder, tiny_engine):
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from ptxsdk.engine import sign_engine

    key, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    sign_engine(tiny_engine, folder / "signed.ptxengine", signing_key=key)
    (folder / "key.pub").write_bytes(key.public_key().public_bytes_raw())
    (folder / "other.pub").write_bytes(other.public_key().public_bytes_raw())
    good = run("verify", folder / "signed.ptxengine", "--key", folder / "key.pub", "--json")
    assert (good.exit_code, json.loads(good.stdout)["signature"]) == (0, "verified")
    for engine, public in (("signed", "other"), ("tiny", "key")):
        refused = run("verify", folder / f"{engine}.ptxengine", "--key", folder / f"{public}.pub")
        assert refused.exit_code == 1
        assert "engine.signature" in refused.stderr


def test_predict_with_a_key_refuses_other_engines(folder):
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    (folder / "key.pub").write_bytes(Ed25519PrivateKey.generate().public_key().public_bytes_raw())
    result = predict(folder, folder / "films" / "b.png", "--key", folder / "key.pub", "--json")
    assert result.exit_code == 1
    assert lines(result)[0]["error"]["code"] == "engine.signature"


def test_a_failure_of_verify_is_json_too(folder):
    (folder / "text.ptxengine").write_text("no engine")
    result = run("verify", folder / "text.ptxengine", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"]["code"] == "engine.not_an_engine"


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_inspect_and_verify_refuse_a_damaged_engine(folder, command):
    damaged = (folder / "tiny.ptxengine").read_bytes()[:-7]
    (folder / "cut.ptxengine").write_bytes(damaged)
    result = run(command, folder / "cut.ptxengine")
    assert result.exit_code == 1
    assert "engine." in result.stderr
    assert result.stdout == ""


def test_doctor():
    result = run("doctor", "--json")
    assert result.exit_code == 0
    body = json.loads(result.stdout)
    assert body["backends"]["openvino"]["usable"] is True
    assert body["versions"]["numpy"] == np.__version__
    assert "baseline" in body["cpu"]["instruction_sets"]
    assert body["codecs"].startswith("helper ")
    assert run("doctor").exit_code == 0


def test_bench(folder):
    result = run("bench", "--engine", folder / "tiny.ptxengine", "--repeats", 5, "--json")
    assert result.exit_code == 0, result.output
    stages = json.loads(result.stdout)["stages_ms"]
    assert set(stages) == {"read", "gate", "preprocess", "network", "aggregate", "total"}
    assert 0 < stages["network"]["p50"] <= stages["total"]["p95"]
    assert run("bench", "--engine", folder / "tiny.ptxengine", "--repeats", 5).exit_code == 0


@pytest.mark.requirement("R-CLI-1")
def test_as_a_process_stdout_holds_json_alone(folder, tmp_path):
    command = [sys.executable, "-m", "ptxsdk", "predict", "--engine", str(folder / "tiny.ptxengine"), "--json"]
    films = [str(folder / "films"), str(folder / "nowhere")]
    ran = subprocess.run([*command, *films], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert len([json.loads(line) for line in ran.stdout.splitlines()]) == 4
    usage = subprocess.run([*command, "--precision", "no"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (usage.returncode, usage.stdout) == (2, "")


def test_a_bar_on_the_terminal_leaves_stdout_alone(folder, tmp_path):
    """Six films, stderr on a terminal, stdout in a file: the file holds six lines of JSON."""
    command = [sys.executable, "-m", "ptxsdk", "predict", "--engine", str(folder / "tiny.ptxengine"), "--json"]
    films = [str(folder / "films" / "b.png")] * 6
    master, terminal = pty.openpty()
    shown = []
    drain = threading.Thread(target=lambda: shown.extend(iter(lambda: _read(master), b"")))
    with (tmp_path / "results").open("w") as results:
        process = subprocess.Popen([*command, *films], cwd=tmp_path, stdout=results, stderr=terminal)
        os.close(terminal)
        drain.start()
        assert process.wait(timeout=120) == 0
    drain.join()
    os.close(master)
    assert len([json.loads(line) for line in (tmp_path / "results").read_text().splitlines()]) == 6
    assert b"films" in b"".join(shown)


def _read(descriptor):
    try:
        return os.read(descriptor, 4096)
    except OSError:  # the other end is closed
        return b""


def test_file_names_of_any_bytes(folder, tmp_path):
    film = os.fsencode(tmp_path) + b"/f\xff\x1b.png"
    Path(os.fsdecode(film)).write_bytes((folder / "films" / "b.png").read_bytes())
    command = [sys.executable, "-m", "ptxsdk", "predict", "--engine", str(folder / "tiny.ptxengine"), film]
    for options, environment in (([b"--json", b"--out", b"out"], {}), ([], {}), ([], {"PYTHONIOENCODING": "ascii"})):
        ran = subprocess.run(
            [*command, *options], cwd=tmp_path, capture_output=True, check=False, env=os.environ | environment
        )
        assert ran.returncode == 0, ran.stderr
        assert b"\x1b" not in ran.stdout
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_a_full_stdout_is_a_failure_not_a_traceback(folder, tmp_path):
    command = [sys.executable, "-m", "ptxsdk", "predict", "--engine", str(folder / "tiny.ptxengine"), "--json"]
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(
            [*command, str(folder / "films")], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert ran.returncode == 1
    assert "Traceback" not in ran.stderr
    assert "No space left" in ran.stderr


@pytest.mark.parametrize("command", [["predict", "films", "--json"], ["predict", "films"], ["inspect", "--json"]])
def test_a_closed_stdout_is_a_failure_not_a_traceback(folder, command):
    engine = ["--engine", "tiny.ptxengine"] if command[0] == "predict" else ["tiny.ptxengine"]
    ran = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "ptxsdk", *command, *engine],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (1, "ptxsdk: cannot write the output: standard output is closed\n")


def test_with_stdin_and_stderr_closed_no_file_takes_their_place(folder, tmp_path):
    command = ["predict", "films/b.png", "--engine", "tiny.ptxengine", "--json", "--audit", str(tmp_path / "log")]
    ran = subprocess.run(
        ["sh", "-c", 'exec "$@" <&- 2>&-', "sh", sys.executable, "-m", "ptxsdk", *command],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert (ran.returncode, json.loads(ran.stdout)["file"]) == (0, "films/b.png")
    assert [json.loads(line)["event"] for line in (tmp_path / "log").read_text().splitlines()] == ["start", "predict"]


def test_folders_of_any_depth_are_searched(folder, tmp_path):
    film = (folder / "films" / "b.png").read_bytes()
    top = tmp_path / "top"
    top.mkdir()
    (top / "a.png").write_bytes(film)
    below = top.joinpath(*"0" * 200)
    below.mkdir(parents=True)
    (below / "b.png").write_bytes(film)
    (below / "link").symlink_to(top)
    os.mkfifo(below / "pipe")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 100)
    try:
        found = list(find_films([top]))
    finally:
        sys.setrecursionlimit(limit)
    assert [path for path, _ in found] == [below / "b.png", top / "a.png"]


def test_a_folder_that_cannot_be_looked_at_is_said_and_stops_nothing(folder, tmp_path, monkeypatch):
    top = tmp_path / "top"
    (top / "locked").mkdir(parents=True)
    (top / "a.png").write_bytes((folder / "films" / "b.png").read_bytes())
    scan = os.scandir

    def scandir(path):
        if Path(path).name == "locked":
            raise PermissionError(errno.EACCES, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    (locked, error), (film, name) = find_films([top])
    assert (locked.name, error.code, film.name, name) == ("locked", "input.unreadable", "a.png", "a.png")
