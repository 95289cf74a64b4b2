"""A backbone learns what the records say, and its weights start another network."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

from training.data.films import Film  # noqa: E402
from training.models.backbones import create_backbone  # noqa: E402
from training.pretrain import AttributeStream, attribute_targets, attributes, pretrain  # noqa: E402
from training.train import LEFT_OUT, check_weights, fit  # noqa: E402


def film(**more):
    return Film(image="a", origin="nih", patient="p", label=1, labelled_by="siim", **more)


def test_what_the_record_does_not_say_is_not_known():
    films = [
        film(findings=("Mass", "Pneumothorax"), sex="M", view="AP"),
        film(findings=("No Finding",), sex="F"),
        film(),
    ]
    names = attributes(films)
    assert names == ["Mass", "Pneumothorax", "male", "AP"]
    np.testing.assert_array_equal(attribute_targets(films[0], names), [1, 1, 1, 1])
    np.testing.assert_array_equal(attribute_targets(films[1], names), [0, 1, 0, np.nan])
    np.testing.assert_array_equal(attribute_targets(films[2], names), [np.nan, 1, np.nan, np.nan])


def test_weights_that_know_a_held_out_patient_are_refused(prepared, tiny_config, quiet, tmp_path):
    cache, parts = prepared
    weights = create_backbone(tiny_config.backbone, weights="none").state_dict()
    patients = sorted({each.patient for each in (*parts.validation, *parts.test)})
    torch.save({"state_dict": weights, LEFT_OUT: patients}, tmp_path / "clean.pt")
    torch.save({"state_dict": weights, LEFT_OUT: patients[1:]}, tmp_path / "leaky.pt")
    check_weights(str(tmp_path / "clean.pt"), parts)
    leaky = dataclasses.replace(tiny_config, weights=str(tmp_path / "leaky.pt"))
    with pytest.raises(ValueError, match=f"learnt on 1 of the {len(patients)} patients"):
        fit(leaky, cache, parts, tmp_path / "run", **quiet)


def test_batches_are_a_function_of_seed_and_step(prepared):
    cache, parts = prepared
    make = {"batch": 4, "steps": 3}
    one, two = (AttributeStream(cache, parts.train, attributes(parts.train), **make)[1] for _ in range(2))
    assert torch.equal(one[0], two[0])
    with pytest.raises(IndexError):
        AttributeStream(cache, parts.train, attributes(parts.train), **make)[3]


def test_the_weights_start_another_network(prepared, tiny_config, tmp_path):
    cache, parts = prepared
    config = dataclasses.replace(tiny_config, steps=3)
    weights = pretrain(config, cache, parts.train, workers=0, progress=False)
    torch.save(weights, tmp_path / "weights.pt")
    network = create_backbone(config.backbone, weights=str(tmp_path / "weights.pt"))
    for name, value in network.state_dict().items():
        assert torch.equal(value, weights[name])
    again = pretrain(config, cache, parts.train, workers=0, progress=False)
    assert all(torch.equal(value, again[name]) for name, value in weights.items())
