"""The comparison trains every arm on every fold, once, and says what came out."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("lightning")
pytest.importorskip("matplotlib")
pytest.importorskip("ptxsdk._core")

from training import reproduce, train

ARMS = ["clasegnet", "image", "classifier"]
OPTIONS = (
    "--backbone test_efficientnet --weights none --size 64 --grid 4 --batch 8 --steps 4 --epoch-steps 4 --lr 0.003 "
    "--folds 2 --workers 0 --no-progress --precision fp32 --replicates 20"
)


@pytest.fixture(scope="module")
def compared(data_folder, prepared, tmp_path_factory):
    """The folder of a comparison of three arms on the made films."""
    out = tmp_path_factory.mktemp("compared")
    cache = shutil.copytree(prepared[0].folder, out / "cache" / prepared[0].folder.name)
    np.save(cache / "vectors.npy", np.eye(len(prepared[0].images)))
    where = ["--data", str(data_folder), "--out", str(out)]
    reproduce.main([*where, "--arms", *ARMS[1:], *OPTIONS.split()])
    reproduce.main([*where, "--arms", ARMS[0], *OPTIONS.split()])
    return out


def test_every_arm_is_measured_on_the_same_films(compared):
    results = json.loads((compared / reproduce.RESULTS).read_text())
    assert list(results["arms"]) == ARMS
    counts = {arm["trusted"]["classification"]["auc"]["n"] for arm in results["arms"].values()}
    assert counts == {64}
    assert list(results["compared"]) == ["clasegnet less image", "clasegnet less classifier"]
    assert all(len(arm["auc_by_fold"]) == 2 for arm in results["arms"].values())
    assert results["config"]["lr"] == 0.003
    gap = results["compared"]["clasegnet less image"]["auc"]["value"]
    areas = [results["arms"][name]["trusted"]["classification"]["auc"]["value"] for name in ("clasegnet", "image")]
    assert gap == pytest.approx(areas[0] - areas[1])


def test_the_table_and_the_report_are_written(compared):
    text = (compared / reproduce.TABLE).read_text()
    assert all(reproduce.ARMS[name].title in text for name in ARMS)
    assert "developed on these films" in text
    rows = json.loads((compared / "readings-image.json").read_text())
    assert len(rows) == 64
    assert all(0 <= row["probability"] <= 1 for row in rows)
    assert "<svg" in (compared / reproduce.REPORT).read_text()


def test_kept_readings_stand_in_for_runs(compared, data_folder, tmp_path):
    for path in (compared / train.CONFIG, *compared.glob("readings-*.json")):
        shutil.copy(path, tmp_path)
    shutil.copytree(compared / "cache", tmp_path / "cache")
    shutil.copytree(compared / "classifier-0", tmp_path / "classifier-0")
    reproduce.main(["--data", str(data_folder), "--out", str(tmp_path), "--tables-only", *OPTIONS.split()])
    before, after = (json.loads((folder / reproduce.RESULTS).read_text()) for folder in (compared, tmp_path))
    assert before["compared"].keys() == after["compared"].keys()
    for name in ARMS:
        one, other = (each["arms"][name]["trusted"]["classification"]["auc"]["value"] for each in (before, after))
        assert one == other


def test_other_options_do_not_mix_with_what_is_stored(compared, data_folder):
    with pytest.raises(ValueError, match=r"comparison of another configuration: lr is 0\.003, not 0\.5"):
        reproduce.main(
            ["--data", str(data_folder), "--out", str(compared), "--arms", "image", *OPTIONS.split(), "--lr", "0.5"]
        )


def test_made_positives_without_lungs_are_refused_at_once(data_folder, tmp_path, capsys):
    with pytest.raises(SystemExit):
        reproduce.main(["--data", str(data_folder), "--out", str(tmp_path)])
    assert "needs --lungs" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
