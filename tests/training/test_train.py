"""Training lowers the loss, repeats itself, resumes where it stopped and keeps what it promises on disk."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

from training import train  # noqa: E402
from training.learner import HELP, Learner, MovingAverage, TrainConfig, learning_rate, parameter_groups  # noqa: E402
from training.train import fit, load_lungs, load_network  # noqa: E402


def read_journal(run, column):
    """Return the logged values of a column, as (step, value)."""
    with (run / "journal" / "version_0" / "metrics.csv").open(newline="") as stream:
        return [(int(row["step"]), float(row[column])) for row in csv.DictReader(stream) if row.get(column)]


def weights_of(run):
    return load_network(run)[0].state_dict()


def test_training_lowers_the_loss(tiny_config, prepared, quiet, tmp_path):
    config = dataclasses.replace(tiny_config, steps=30, epoch_steps=10)
    stream = train.TrainingStream(prepared[0], prepared[1].train, batch=16, steps=1)
    torch.manual_seed(config.seed)
    before = Learner(config).loss(stream[0])["total"].item()
    fit(config, *prepared, tmp_path, **quiet)
    network, _ = load_network(tmp_path)
    learner = Learner(config)
    learner.network = network
    with torch.no_grad():
        assert learner.loss(stream[0])["total"].item() < 0.7 * before


def test_validation_is_logged_and_the_best_weights_kept(trained):
    scores = read_journal(trained, "validation/score")
    assert [step for step, _ in scores] == [5, 11]
    auc, dice = read_journal(trained, "validation/auc"), read_journal(trained, "validation/dice")
    assert scores[1][1] == pytest.approx(auc[1][1] + dice[1][1], abs=1e-5)
    best = torch.load(trained / train.BEST, weights_only=True)
    assert best["global_step"] == 1 + max(scores, key=lambda entry: entry[1])[0]
    assert list(trained.glob("tensorboard/version_0/events.out.tfevents.*"))


def test_the_same_seed_gives_the_same_weights(trained, tiny_config, prepared, quiet, tmp_path):
    fit(tiny_config, *prepared, tmp_path / "same", **quiet)
    fit(dataclasses.replace(tiny_config, seed=1), *prepared, tmp_path / "other", **quiet)
    first, same, other = weights_of(trained), weights_of(tmp_path / "same"), weights_of(tmp_path / "other")
    for name, value in first.items():
        assert torch.equal(value, same[name]), name
    assert any(not torch.equal(value, other[name]) for name, value in first.items())


def test_a_killed_run_ends_where_the_unbroken_one_does(trained, tiny_config, prepared, quiet, tmp_path):
    fit(tiny_config, *prepared, tmp_path, until=6, **quiet)
    assert torch.load(tmp_path / train.LAST, weights_only=True)["global_step"] == 6
    fit(tiny_config, *prepared, tmp_path, resume=True, **quiet)
    state = torch.load(tmp_path / train.LAST, weights_only=True)
    assert state["global_step"] == 12
    for name, value in weights_of(trained).items():
        assert torch.equal(weights_of(tmp_path)[name], value), name


def test_the_averaged_weights_are_kept_beside_those_trained(trained):
    state = torch.load(trained / train.LAST, weights_only=True)
    averaged, current = state["state_dict"], state["current_model_state"]
    assert any(not torch.equal(averaged[name], current[name]) for name in averaged)
    assert torch.equal(averaged["network.mask_head.bias"], load_network(trained)[0].mask_head.bias)


def test_a_run_without_validation_films_ends_too(tiny_config, prepared, quiet, tmp_path):
    cache, parts = prepared
    fit(dataclasses.replace(tiny_config, ema=0.0), cache, parts._replace(validation=[]), tmp_path, **quiet)
    assert torch.load(tmp_path / train.LAST, weights_only=True)["global_step"] == 12
    assert not (tmp_path / train.BEST).exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"system": "classifier", "supervision": "image"},
        {"system": "li2018", "supervision": "boxes"},
        {"supervision": "image"},
        {"supervision": "boxes", "focal": 2.0},
        {"exact_product": True},
        {"paper_floor": True},
        {"schedule": "plateau", "weight_decay": 0.0, "augmentation": "paper"},
        {"warm_size": 32, "warm_steps": 1},
        {"frozen": 1},
    ],
)
def test_every_system_and_option_takes_a_step_and_comes_back(changes, tiny_config, prepared, quiet, tmp_path):
    config = dataclasses.replace(tiny_config, steps=2, epoch_steps=2, **changes)
    fit(config, *prepared, tmp_path, **quiet)
    network, again = load_network(tmp_path)
    assert again == config
    output = network(torch.zeros(1, 1, 64, 64))
    assert output.mask_logits.shape == (1, 64, 64)
    assert all(torch.isfinite(logits).all() for logits in output)


def test_early_stopping_ends_a_run_that_gains_nothing(tiny_config, prepared, quiet, tmp_path):
    config = dataclasses.replace(tiny_config, lr=0.0, ema=0.0, weight_decay=0.0, steps=60, epoch_steps=2, patience=2)
    cache, parts = prepared
    fit(config, cache, parts, tmp_path, **quiet)
    assert torch.load(tmp_path / train.LAST, weights_only=True)["global_step"] < 60


@pytest.mark.parametrize("changes", [{"patience": 2}, {"schedule": "plateau"}])
def test_what_needs_validation_films_is_refused_without(changes, tiny_config, prepared, quiet, tmp_path):
    cache, parts = prepared
    with pytest.raises(ValueError, match="need validation films"):
        fit(dataclasses.replace(tiny_config, **changes), cache, parts._replace(validation=[]), tmp_path, **quiet)


def test_the_learning_rate_rises_then_falls():
    rates = [learning_rate(step, 100) for step in range(100)]
    assert rates[:6] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1])
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[5:]))
    assert rates[-1] == pytest.approx(0.01, abs=0.002)


def test_the_moving_average_follows_quickly_at_first():
    average = MovingAverage(0.9)._kwargs["multi_avg_fn"]
    kept, counted = [torch.zeros(1)], [torch.tensor(3)]
    average(kept, [torch.ones(1)], torch.tensor(1))  # decay 2 / 11
    assert kept[0].item() == pytest.approx(9 / 11)
    average(kept, [torch.ones(1)], torch.tensor(10_000))
    assert kept[0].item() == pytest.approx(1 - 0.9 * 2 / 11)
    average(counted, [torch.tensor(5)], torch.tensor(1))
    assert counted[0].item() == 5


def test_the_backbone_learns_more_slowly_and_vectors_do_not_decay(tiny_config):
    groups = parameter_groups(tiny_config.network(), dataclasses.replace(tiny_config, lr=1.0, backbone_lr=0.25))
    assert [group["lr"] for group in groups] == [0.25, 0.25, 1.0, 1.0]
    assert [group["weight_decay"] for group in groups] == [tiny_config.weight_decay, 0.0] * 2
    assert all(parameter.ndim < 2 for group in groups[1::2] for parameter in group["params"])


def test_every_option_of_the_command_line_has_help_and_reaches_the_run():
    assert set(HELP) == {field.name for field in dataclasses.fields(TrainConfig)}
    parser = train.build_parser()
    assert all(action.help for action in parser._actions)
    words = "--data d --out o --size 128 --grid 4 --paper-floor --supervision boxes --lr 0.5 --test-fold -1"
    config = train.config_of(parser.parse_args(words.split()))
    assert config == TrainConfig(size=128, grid=4, paper_floor=True, supervision="boxes", lr=0.5, test_fold=-1)
    assert config.loss_weights.floor == 0.98


def test_patients_left_out_are_never_used(prepared, tiny_config):
    cache, parts = prepared
    films = [*parts.train, *parts.validation, *parts.test]
    config = dataclasses.replace(tiny_config, leave_out="p03,p17", test_fold=-1, validation_fold=-1)
    found = train.split(films, cache, config)
    assert {each.patient for each in films} - {each.patient for each in found.train} == {"p03", "p17"}
    with pytest.raises(ValueError, match="no films of the patients p99"):
        train.split(films, cache, dataclasses.replace(config, leave_out="p99"))


def test_lung_outlines_are_read_at_the_size_of_the_films(tmp_path):
    lungs = np.zeros((2, 8, 8), np.uint8)
    lungs[0, :4, :4] = 2
    np.savez(tmp_path / "lungs.npz", images=["a.png", "b.png"], lungs=lungs)
    found = load_lungs(tmp_path / "lungs.npz", 16)
    assert list(found) == ["a.png"]
    assert found["a.png"][:8, :8].tolist() == [[2] * 8] * 8
    assert not found["a.png"][8:].any()


def test_the_configuration_is_kept_with_the_run(trained, tiny_config):
    assert json.loads((trained / train.CONFIG).read_text()) == dataclasses.asdict(tiny_config)
