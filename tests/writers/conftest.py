"""Detectors of both profiles, and the results of every film of `dicom_results.FILMS`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from dicom_results import EVERY, FILMS

from ptxsdk import Detection, Detector, Radiograph
from ptxsdk.writers import dicom_objects, write_dicom


@dataclass(frozen=True)
class Results:
    """A film, its detection, the objects made of it and their files."""

    film: Radiograph
    detection: Detection
    objects: dict[str, Any]
    files: dict[str, Any]


@pytest.fixture(scope="session")
def triage(tiny_engine):
    with Detector(tiny_engine, profile="triage") as made:
        yield made


@pytest.fixture(scope="session")
def results_of(detector, triage, tmp_path_factory):
    """Return a function of a film's name and a profile; each is made once."""
    made = {}

    def of(name, profile="cade"):
        if (name, profile) not in made:
            film = FILMS[name]()
            detection = (detector if profile == "cade" else triage).predict(film)
            objects = dicom_objects(detection, film, EVERY if profile == "cade" else ("sc", "sr"))
            folder = tmp_path_factory.mktemp(name)
            files = {kind: folder / f"{kind}.dcm" for kind in objects}
            for kind, path in files.items():
                write_dicom(path, objects[kind])
            made[name, profile] = Results(film, detection, objects, files)
        return made[name, profile]

    return of
