"""An engine is measured through the SDK: what an integrator gets is what is counted."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("lightning")
pytest.importorskip("matplotlib")
pytest.importorskip("ptxsdk._core")
pytest.importorskip("onnx")
cv2 = pytest.importorskip("cv2")

import made  # noqa: E402

from training import evaluate  # noqa: E402

BLOBS = [(120, 80, 40), (200, 180, 24), None, None]


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Four chests, two with a white blob under a mask; a fifth that the gate refuses; and a small engine."""
    folder = tmp_path_factory.mktemp("chests")
    rows = []
    for index, blob in enumerate([*BLOBS, "flat"]):
        film = np.full((320, 280), 128, np.uint8) if blob == "flat" else made.make_chest((320, 280), blob=blob)
        cv2.imwrite(str(folder / f"{index}.png"), film)
        mask = ""
        if index < 2:
            mask = f"{index}.mask.png"
            y, x = np.ogrid[:320, :280]
            disc = (y - blob[0]) ** 2 + (x - blob[1]) ** 2 <= blob[2] ** 2
            cv2.imwrite(str(folder / mask), 255 * disc.astype(np.uint8))
        row = {"image": f"{index}.png", "set": "nih", "patient": str(index), "label": int(index < 2), "mask": mask}
        rows.append(row | {"labelled_by": "siim", "view": "AP"})
    with (folder / "manifest.csv").open("w", newline="") as stream:
        columns = ("image", "set", "patient", "label", "labelled_by", "mask", "boxes_xywh", "nih_label", "view")
        writer = csv.DictWriter(stream, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    (folder / "tiny.ptxengine").write_bytes(made.make_engine(made.make_network()))
    return folder


def test_an_engine_is_measured_through_the_sdk(films, tmp_path):
    from ptxsdk import Detector

    where = ["--data", str(films), "--out", str(tmp_path), "--replicates", "20", "--panels", "1"]
    evaluate.main([str(films / "tiny.ptxengine"), *where])
    results = json.loads((tmp_path / evaluate.METRICS).read_text())
    assert list(results["refused"]) == ["4.png"]
    assert results["films"]["films"] == 4
    assert results["classification"]["auc"]["value"] == 1
    with Detector(films / "tiny.ptxengine") as detector:
        flagged = [detector.predict(films / f"{index}.png").flagged for index in range(4)]
    confusion = results["operating_points"]["balanced"]["confusion"]
    assert confusion["true_positive"] == sum(flagged[:2])
    assert confusion["false_positive"] == sum(flagged[2:])
    assert results["localization"]["peak_in_region"]["value"] == 1
    assert results["localization"]["dice_mean_positives"]["value"] > 0.9
    assert "Not a medical device" in (tmp_path / evaluate.REPORT).read_text()


def test_films_an_engine_was_trained_on_are_no_test(films, tmp_path):
    from ptxsdk import manifest as parts

    source = parts.DataSource(name="NIH ChestX-ray14", n=4, credit="NIH", licence="free")
    provenance = parts.Provenance(training_data=(source,), code_version="0", command="train", seed=0)
    engine = tmp_path / "trained.ptxengine"
    engine.write_bytes(made.make_engine(made.make_network(), provenance=provenance))
    evaluate.main([str(engine), "--data", str(films), "--out", str(tmp_path), "--replicates", "5", "--panels", "1"])
    assert json.loads((tmp_path / evaluate.METRICS).read_text())["may_hold_training_films"]
    assert evaluate.TRAINED_ON in (tmp_path / evaluate.REPORT).read_text()
