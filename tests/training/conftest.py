"""A folder of made films, and the path to the training package, which no wheel ships."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2]))

COLUMNS = ("image", "set", "patient", "label", "labelled_by", "mask", "boxes_xywh", "nih_label", "findings", "view")
SIDE = 96


def make_film(rng, positive):
    """Return a film of noise and its mask: a positive has a dark disc at a random place."""
    film = rng.normal(150, 20, (SIDE, SIDE))
    mask = np.zeros((SIDE, SIDE), np.uint8)
    if positive:
        y, x = rng.integers(24, SIDE - 24, 2)
        rows, columns = np.ogrid[:SIDE, :SIDE]
        mask[(rows - y) ** 2 + (columns - x) ** 2 < 15**2] = 255
        film[mask > 0] -= 110
    return np.clip(film, 0, 255).astype(np.uint8), mask


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory):
    """64 films of 40 patients (two or one each) labelled by radiologists, 16 predicted films without patient ids."""
    cv2 = pytest.importorskip("cv2")
    folder = tmp_path_factory.mktemp("films")
    rng = np.random.default_rng(0)
    rows = []
    for index in range(80):
        trusted, positive = index < 64, index % 2 == 0
        film, mask = make_film(rng, positive)
        name = f"film{index:03}"
        cv2.imwrite(str(folder / f"{name}.png"), film)
        if positive:
            cv2.imwrite(str(folder / f"{name}.mask.png"), mask)
        rows.append(
            {
                "image": f"{name}.png",
                "set": "nih" if trusted else "siim2",
                "patient": f"p{index % 40:02}" if trusted else "",
                "label": int(positive),
                "labelled_by": "siim" if trusted else "predicted",
                "mask": f"{name}.mask.png" if positive else "",
                "boxes_xywh": "",
                "view": "AP" if index % 3 else "PA",
            }
        )
    with (folder / "manifest.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return folder


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Keep PyTorch to one thread: for networks this small a second only waits."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def plain_preprocess():
    """An independent stand-in for the SDK's preprocessing, for square films."""
    cv2 = pytest.importorskip("cv2")

    def preprocess(pixels, size, *, display=None):
        tensor = cv2.resize(pixels.astype(np.float32) / 255, (size, size), interpolation=cv2.INTER_AREA)
        return tensor, (0, 0, size, size)

    return preprocess


@pytest.fixture(scope="session")
def tiny_config():
    """A run that takes seconds: no pretrained weights, 64 pixels."""
    pytest.importorskip("lightning")
    from training.learner import TrainConfig

    return TrainConfig(
        backbone="test_efficientnet",
        weights="none",
        size=64,
        grid=4,
        batch=8,
        steps=12,
        lr=3e-3,
        ema=0.5,
        folds=4,
        epoch_steps=6,
    )


@pytest.fixture(scope="session")
def prepared(data_folder, tiny_config, plain_preprocess, tmp_path_factory):
    """Cache and split of the made films."""
    from training.train import prepare

    return prepare(
        data_folder,
        tmp_path_factory.mktemp("cache"),
        tiny_config,
        preprocess=plain_preprocess,
        describe_films=lambda cache: np.eye(len(cache.images), dtype=np.float32),
    )


@pytest.fixture(scope="session")
def quiet():
    """How a run is carried out in a test."""
    return {"precision": "fp32", "workers": 0, "progress": False}


@pytest.fixture(scope="session")
def trained(tiny_config, prepared, quiet, tmp_path_factory):
    """The folder of a finished tiny run."""
    from training.train import fit

    out = tmp_path_factory.mktemp("run")
    fit(tiny_config, *prepared, out, **quiet)
    return out
