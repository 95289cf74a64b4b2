"""Triage shows no location, whatever writes: found by moving the finding and looking for a difference."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from dicom_results import EVERY, chest_film, encoded

from ptxsdk import WriterError
from ptxsdk.writers import DICOM, NAMES, dicom_objects, permitted, require_location
from ptxsdk.writers.json import to_line
from ptxsdk.writers.overlay import overlay_content, render_overlay

UPPER_RIGHT, LOWER_LEFT = (180, 150, 60), (400, 410, 60)


def everything(detection, film):
    """What every writer makes of a result: its bytes by name, the code where it is refused."""
    from ptxsdk import Timings

    detection = replace(detection, timings=Timings(0, 0, 0, 0, 0, 0))
    made = {}
    for name in NAMES:
        try:
            if name == "json":
                made[name] = to_line("film", detection).encode()
            elif name == "overlay":
                made[name] = render_overlay(film, detection).tobytes()
            else:
                made[name] = encoded(dicom_objects(detection, film, [name], uid_seed="x")[name])
        except WriterError as error:
            made[name] = error.code
    return made


def moved(detector):
    """The results of two films that differ in nothing but the place of the finding."""
    results = []
    for blob in (UPPER_RIGHT, LOWER_LEFT):
        film = chest_film(blob=blob)
        detection = detector.predict(film)
        assert detection.flagged
        # The gate's remarks on contrast and the like may differ in a digit; they are of the film as a whole.
        results.append(everything(replace(detection, probability=0.9, quality=type(detection.quality)()), film))
    return results


@pytest.mark.requirement("R-PROFILE-1")
def test_in_triage_no_result_depends_on_where_the_finding_is(triage):
    first, second = moved(triage)
    assert {name for name, made in first.items() if made == "writer.profile"} == {"overlay", "seg", "gsps"}
    assert first == second


def test_in_cade_every_result_does(detector):
    first, second = moved(detector)
    for name in NAMES:
        assert isinstance(first[name], bytes)
        assert first[name] != second[name], name


@pytest.mark.requirement("R-PROFILE-1")
def test_the_words_of_a_location_are_in_no_triage_result(triage):
    film = chest_film()
    detection = triage.predict(film)
    for ds in dicom_objects(detection, film).values():
        text = str(ds).lower()
        for word in ("39607008", "laterality", "24028007", "7771000", "graphicdata", "scoord", "segment"):
            assert word not in text
    line = json.loads(to_line("film", detection))
    assert line["regions"] == []
    assert "map" not in line


@pytest.mark.parametrize("name", ["seg", "gsps"])
def test_asking_for_a_location_in_triage_is_an_error(triage, name):
    film = chest_film()
    with pytest.raises(WriterError) as raised:
        dicom_objects(triage.predict(film), film, ["sc", name])
    assert raised.value.code == "writer.profile"
    film = chest_film(blob=None)  # also where there is none
    with pytest.raises(WriterError):
        dicom_objects(triage.predict(film), film, [name])


def test_the_overlay_is_refused(triage):
    film = chest_film()
    with pytest.raises(WriterError):
        overlay_content(film, triage.predict(film))


def test_one_place_says_what_a_profile_permits(triage, detector):
    assert permitted("cade") == NAMES
    assert permitted("triage") == ("json", "sc", "sr")
    assert set(DICOM) == set(EVERY)
    film = chest_film()
    for name in NAMES:
        require_location(detector.predict(film), name)
        if name not in permitted("triage"):
            with pytest.raises(WriterError):
                require_location(triage.predict(film), name)


def test_a_triage_detection_carries_nothing_to_leak(triage):
    detection = triage.predict(chest_film())
    assert detection.regions == ()
    assert detection.mask_logits is None
    assert detection.region_threshold is None
    with pytest.raises(ValueError, match="no location"):
        replace(detection, mask_logits=np.zeros((64, 64), np.float32))
