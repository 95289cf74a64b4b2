"""The table for ``ptxsdk build``: what is trusted measures, the rest calibrates, and the SDK reads it."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from ptxsdk.build.films import find_build_films, split_films
from training.build_table import main, table
from training.data.films import Film


def films():
    return [
        Film(image="a/1.png", mask="m/1.png", origin="nih", patient="p1", label=1, labelled_by="siim"),
        Film(image="a/2.png", origin="nih", patient="p2", label=1, labelled_by="box", boxes=((1.5, 2, 30, 40),)),
        Film(image="a/3.png", origin="nih", patient="p3", label=0, labelled_by="nih"),
        Film(image="b/4.png", origin="siim2", patient="", label=1, labelled_by="predicted"),
    ]


def test_the_sdk_reads_what_is_written(tmp_path):
    folder = tmp_path / "tables"
    folder.mkdir()
    (folder / "films.csv").write_text(table(films(), tmp_path / "data", folder))
    found = find_build_films(folder)
    assert [film.path.resolve() for film in found] == [tmp_path / "data" / film.image for film in films()]
    assert [film.label for film in found] == [True, True, False, True]
    assert found[0].mask.resolve() == tmp_path / "data" / "m" / "1.png"
    assert found[1].boxes == ((1.5, 2, 30, 40),)
    calibration, validation = split_films(found)
    assert [film.path.name for film in calibration] == ["4.png"]
    assert [film.group for film in validation] == ["p1", "p2", "p3"]


def test_a_patient_measures_or_calibrates_and_never_both(tmp_path):
    both = [
        *films(),
        Film(image="a/5.png", origin="nih", patient="p3", label=1, labelled_by="nih"),
        Film(image="a/6.png", origin="nih", patient="p9", label=1, labelled_by="nih"),
    ]
    (tmp_path / "films.csv").write_text(table(both, tmp_path, tmp_path))
    calibration, _ = split_films(find_build_films(tmp_path))
    assert [film.path.name for film in calibration] == ["4.png", "6.png"]


def test_patients_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr("training.build_table.read_films", lambda _: films())
    main(["--data", str(tmp_path), "--out", str(tmp_path / "films.csv"), "--leave-out", "p1,p3"])
    assert [film.path.name for film in find_build_films(tmp_path)] == ["2.png", "4.png"]
