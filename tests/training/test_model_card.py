"""The model card says what the shipped engine's manifest says, and no more."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("lightning")
pytest.importorskip("ptxsdk._core")
onnx = pytest.importorskip("onnx")

import ptxsdk  # noqa: E402
from ptxsdk import Engine  # noqa: E402
from training.model_card import GALLERY, MEASURES, STRATA, cost, draw, model_card  # noqa: E402

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def engine():
    return Engine.open(Path(ptxsdk.__file__).parent / "models" / "clasegnet.ptxengine")


def test_the_card_in_the_documentation_is_that_of_the_shipped_engine(engine):
    gallery = json.loads((DOCS / "gallery" / GALLERY).read_text())
    costs = cost(engine.manifest.input.size[0], engine.network("fp32"))
    assert (DOCS / "model-card.md").read_text() == model_card(engine.manifest, costs, gallery)
    assert all((DOCS / each["image"]).stat().st_size < 100_000 for each in gallery)


def test_every_measure_of_the_card_is_in_the_manifest(engine):
    assert {*MEASURES, *STRATA} <= {metric.name for metric in engine.manifest.metrics}


def test_the_network_keeps_to_the_budget(engine):
    network = engine.network("fp32")
    assert len(network) <= 20e6
    costs = cost(engine.manifest.input.size[0], network)
    assert float(costs["multiply-accumulates"].split(", ")[1].split()[0]) <= 12


def test_costs_of_one_convolution_by_hand():
    helper = onnx.helper
    weight = onnx.numpy_helper.from_array(np.zeros((400, 1, 3, 3), np.float32), "weight")
    shapes = [
        helper.make_tensor_value_info(name, 1, shape) for name, shape in (("x", [1, 1, 8, 8]), ("y", [1, 400, 8, 8]))
    ]
    node = helper.make_node("Conv", ["x", "weight"], ["y"], pads=[1, 1, 1, 1])
    graph = helper.make_graph([node], "g", shapes[:1], shapes[1:], [weight], value_info=shapes[1:])
    found = cost(8, helper.make_model(graph).SerializeToString())
    assert found["multiply-accumulates"] == f"0.00 G at 8 x 8, {512 * 512 * 400 * 9 / 1e9:.2f} G at 512 x 512"
    assert found["parameters"] == "0.00 million"


def test_outlines_are_drawn_beside_the_film():
    film = np.full((32, 32), 100, np.uint8)
    truth, found = np.zeros((32, 32), bool), np.zeros((32, 32), bool)
    truth[4:20, 4:20] = True
    found[8:28, 8:28] = True
    drawn = draw(film, truth, found)
    assert drawn.shape == (32, 64, 3)
    assert (drawn[:, :32] == 100).all()
    assert drawn[4, 32 + 4].tolist() == [255, 255, 0]
    orange = (drawn[:, 32:] == (0, 140, 255)).all(2)
    assert 0 < orange.sum() < 2 * 4 * 19
    assert not orange[~found].any()
