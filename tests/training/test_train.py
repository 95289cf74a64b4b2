"""Training lowers the loss, resumes where it stopped and keeps what it promises on disk."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from training import train  # noqa: E402
from training.train import MovingAverage, Trainer, learning_rate, load_average  # noqa: E402


def read_journal(run):
    return [json.loads(line) for line in (run / train.JOURNAL).read_text().splitlines()]


def test_training_lowers_the_loss(trained):
    totals = [entry["total"] for entry in read_journal(trained) if "total" in entry]
    assert len(totals) == 12
    assert np.mean(totals[-3:]) < 0.9 * np.mean(totals[:3])


def test_validation_is_journalled_and_the_best_weights_kept(trained):
    scores = [entry for entry in read_journal(trained) if "validation_auc" in entry]
    assert [entry["step"] for entry in scores] == [6, 12]
    best = max(scores, key=lambda entry: entry["validation_auc"] + entry["validation_dice"])
    assert torch.load(trained / train.BEST, weights_only=True)["step"] == best["step"]


def test_a_resumed_run_ends_where_the_unbroken_one_does(trained, tiny_config, prepared, tmp_path):
    make = {"precision": "fp32", "workers": 0}
    Trainer(tiny_config, *prepared, tmp_path, **make).fit(until=5, save_every=5, validate_every=100)
    again = Trainer(tiny_config, *prepared, tmp_path, **make)
    again.resume()
    assert again.step == 5
    again.fit(save_every=100, validate_every=100)
    assert torch.load(tmp_path / train.CHECKPOINT, weights_only=True)["step"] == 12
    broken, unbroken = load_average(tmp_path)[0].state_dict(), load_average(trained)[0].state_dict()
    for name, value in unbroken.items():
        torch.testing.assert_close(broken[name], value, rtol=1e-3, atol=1e-4)


def test_the_learning_rate_rises_then_falls():
    rates = [learning_rate(step, 100) for step in range(100)]
    assert rates[:6] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1])
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[5:]))
    assert rates[-1] == pytest.approx(0.01, abs=0.002)


def test_the_moving_average_follows_quickly_at_first():
    network = torch.nn.Linear(1, 1, bias=False)
    average = MovingAverage(network, 0.9)
    start = network.weight.item()
    with torch.no_grad():
        network.weight += 1
    average.update(network, 1)  # decay 2 / 11
    assert average.network.weight.item() == pytest.approx(start + 9 / 11)
    average.update(network, 10_000)
    assert average.network.weight.item() == pytest.approx(start + 1 - 0.9 * 2 / 11)


def test_every_option_of_the_command_line_has_help_and_reaches_the_run():
    parser = train.build_parser()
    assert all(action.help for action in parser._actions)
    options = parser.parse_args(["--data", "d", "--out", "o", "--size", "128", "--grid", "4", "--paper-floor"])
    config = train.config_of(options)
    assert (config.size, config.grid, config.pretrained) == (128, 4, True)
    assert config.loss_weights.floor == 0.98
