"""Evaluate a run or an ONNX file: ``python -m training.evaluate RUNDIR --data DIR``.

Every choice (aggregation, calibration, thresholds, region rules) is made on the validation films; the test films are
measured with what was chosen, and nothing is chosen on them. The result is one JSON file.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from training import metrics, scoring
from training.data import Film, FilmCache, describe, to_input
from training.metrics import Flags, Floats, Measured

if TYPE_CHECKING:
    from training.train import TrainConfig

logger = logging.getLogger(__name__)

METRICS = "metrics.json"


class Predictions(NamedTuple):
    """Logits of n films: patches (n, P, P) and mask (n, S, S), float32."""

    patch_logits: Floats
    mask_logits: Floats


Predictor = Callable[[NDArray[np.float32]], tuple[Floats, Floats]]
"""The network as a function: images (n, 1, S, S) to patch and mask logits."""


def predict(network: nn.Module | Predictor, cache: FilmCache, films: Sequence[Film], *, batch: int = 8) -> Predictions:
    """Run a network over cached films, without augmentation.

    The mask logits of the padding around a film are set far below any threshold: there is nothing to find there.
    """
    run = _torch_predictor(network) if isinstance(network, nn.Module) else network
    patches, masks = [], []
    for start in range(0, len(films), batch):
        images = np.stack([cache.image(film) for film in films[start : start + batch]])
        patch, mask = run(to_input(images).numpy())
        patches.append(patch)
        masks.append(mask)
    predictions = Predictions(np.concatenate(patches), np.concatenate(masks))
    for film, mask in zip(films, predictions.mask_logits, strict=True):
        x0, y0, x1, y1 = cache.contents[cache.row_of[film.image]]
        outside = np.ones(mask.shape, bool)
        outside[y0:y1, x0:x1] = False
        mask[outside] = -100.0
    return predictions


def onnx_predictor(path: Path) -> Predictor:
    """Return an ONNX file as a predictor, run by onnxruntime one film at a time."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(images: NDArray[np.float32]) -> tuple[Floats, Floats]:
        rows = [session.run(["patch_logits", "mask_logits"], {"image": image[None]}) for image in images]
        patches, masks = zip(*rows, strict=True)
        return np.concatenate(patches), np.concatenate(masks)

    return run


def quick_scores(network: nn.Module, cache: FilmCache, films: Sequence[Film], *, pooled: int = 4) -> dict[str, float]:
    """Return the AUC of the top-k score and the mean Dice of positives at probability 0.5."""
    predictions = predict(network, cache, films)
    scores = scoring.image_logits(predictions.patch_logits, scoring.Aggregation(method="top_k", k=pooled))
    truths = _truths(cache, films)
    overlap = [metrics.dice(predictions.mask_logits[index] > 0, truth) for index, truth in truths.items()]
    return {"auc": metrics.auc(_labels(films), scores), "dice": float(np.mean(overlap)) if overlap else 0.0}


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the validation films decided; all an engine needs besides the network."""

    aggregation: scoring.Aggregation
    calibration: scoring.Calibration
    operating_points: tuple[scoring.OperatingPoint, ...]
    regions: scoring.RegionRules

    def probabilities(self, predictions: Predictions) -> Floats:
        """Return the calibrated probability of each film."""
        return self.calibration(image_scores(predictions, self.aggregation))

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Choices:
        """Read back what `asdict` of a Choices wrote to JSON."""
        return cls(
            aggregation=scoring.Aggregation(**plain["aggregation"]),
            calibration=scoring.Calibration(**plain["calibration"]),
            operating_points=tuple(scoring.OperatingPoint(**point) for point in plain["operating_points"]),
            regions=scoring.RegionRules(**plain["regions"]),
        )


def image_scores(predictions: Predictions, aggregation: scoring.Aggregation) -> Floats:
    """Return the image logit of each film from the output an aggregation reads."""
    source = predictions.patch_logits if aggregation.source == "patch" else predictions.mask_logits
    return scoring.image_logits(source, aggregation)


def choose(predictions: Predictions, cache: FilmCache, films: Sequence[Film]) -> tuple[Choices, dict[str, float]]:
    """Make every choice on validation films; return them and the AUC of each aggregation compared."""
    labels = _labels(films)
    scores = {each: image_scores(predictions, each) for each in scoring.candidates(cache.size)}
    aggregation = scoring.choose_aggregation(scores, labels)
    calibration = scoring.fit_platt(scores[aggregation], labels)
    points = scoring.choose_operating_points(calibration(scores[aggregation]), labels)
    rules = scoring.choose_region_rules(predictions.mask_logits, _truths(cache, films), np.flatnonzero(~labels))
    choices = Choices(aggregation=aggregation, calibration=calibration, operating_points=tuple(points), regions=rules)
    return choices, {each.name: round(metrics.auc(labels, score), 4) for each, score in scores.items()}


def measure(
    predictions: Predictions, choices: Choices, cache: FilmCache, films: Sequence[Film], *, replicates: int = 2000
) -> dict[str, Any]:
    """Measure films with choices already made.

    Returns
    -------
    dict
        ``classification``, ``operating_points``, ``localization``, ``strata`` and ``films``; every measure is a
        dict of value, low, high (95 %) and n. Intervals of proportions are Wilson's, the others come from a
        bootstrap over patients.
    """
    labels = _labels(films)
    probabilities = choices.probabilities(predictions)
    patients = [film.patient or film.image for film in films]

    def over_films(function: Callable[[Flags, Floats], float]) -> dict[str, float]:
        measured = metrics.bootstrap(
            lambda draw: function(labels[draw], probabilities[draw]), patients, replicates=replicates
        )
        return measured.to_dict()

    return {
        "films": describe(films),
        "classification": {
            "auc": over_films(metrics.auc),
            "average_precision": over_films(metrics.average_precision),
            "brier": over_films(metrics.brier),
            "ece": over_films(metrics.expected_calibration_error),
        },
        "operating_points": {
            point.name: {"threshold": point.threshold}
            | _plain(scoring.measure_operating_point(point, probabilities, labels))
            for point in choices.operating_points
        },
        "localization": _localization(predictions, choices, cache, films, replicates),
        "strata": _strata(predictions, choices, cache, films),
    }


def evaluate(
    network: nn.Module | Predictor,
    cache: FilmCache,
    validation: Sequence[Film],
    test: Sequence[Film],
    *,
    replicates: int = 2000,
) -> dict[str, Any]:
    """Choose on validation films, measure both sets, and return what ``metrics.json`` holds."""
    predictions = predict(network, cache, validation)
    choices, areas = choose(predictions, cache, validation)
    return {
        "choices": asdict(choices),
        "aggregation_auc_on_validation": areas,
        "validation": measure(predictions, choices, cache, validation, replicates=replicates),
        "test": measure(predict(network, cache, test), choices, cache, test, replicates=replicates),
    }


def describe_data(train: Sequence[Film], config: TrainConfig) -> dict[str, Any]:
    """Return what the network was trained on, and how films were split."""
    return {
        "train": describe(train),
        "train_by_origin": dict(sorted(Counter(film.origin for film in train).items())),
        "split": f"patient-disjoint: fold 0 of {config.folds} of the films labelled by radiologists or experts "
        "validates, fold 1 tests; all films of their patients leave training, and so do films without a patient id "
        "that look like theirs, which finds about half of the pairs of one patient: some may remain",
        "intervals": "95 %; proportions: Wilson; others: percentile bootstrap over patients",
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate from the command line."""
    from training.train import BEST, load_average, prepare

    parser = argparse.ArgumentParser(
        prog="python -m training.evaluate",
        description="Choose thresholds on the validation films, measure validation and test films, write metrics.json.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUNDIR", help="folder of the run")
    add("--data", type=Path, required=True, help="folder with manifest.csv and the films it names")
    add("--cache", type=Path, help="folder of preprocessed films; RUNDIR/cache when not given")
    add("--checkpoint", default=BEST, help="best.pt for the weights that validated best, checkpoint.pt for the last")
    add("--onnx", type=Path, help="measure this ONNX file instead of the checkpoint")
    add("--out", type=Path, help="file to write; RUNDIR/metrics.json when not given")
    add("--replicates", type=int, default=2000, help="draws of the bootstrap")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    network, config = load_average(options.run, checkpoint=options.checkpoint)
    cache, split = prepare(options.data, options.cache or options.run / "cache", config)
    predictor: nn.Module | Predictor = onnx_predictor(options.onnx) if options.onnx else network
    report = {"data": describe_data(split.train, config)} | evaluate(
        predictor, cache, split.validation, split.test, replicates=options.replicates
    )
    (options.out or options.run / METRICS).write_text(json.dumps(report, indent=2))
    logger.info("chosen on validation: %s", report["choices"])
    for name in ("validation", "test"):
        logger.info("%s: %s %s", name, report[name]["classification"], report[name]["localization"])


def _localization(
    predictions: Predictions, choices: Choices, cache: FilmCache, films: Sequence[Film], replicates: int
) -> dict[str, Any]:
    """Measure masks and regions: Dice of positives, peak hits, what negatives show."""
    truths = _truths(cache, films)
    found = [choices.regions(mask) for mask in predictions.mask_logits]
    overlap = np.array([metrics.dice(found[index], truth) for index, truth in truths.items()])
    owners = [films[index].patient or films[index].image for index in truths]
    located = {index: region > 0 for index, film in enumerate(films) if (region := cache.region(film)) is not None}
    negatives = [index for index, film in enumerate(films) if not film.label]
    flagged = choices.probabilities(predictions) >= choices.operating_points[0].threshold
    shown = [mask & flag for mask, flag in zip(found, flagged, strict=True)]
    areas = [_share_of_film(found[index], cache, films[index]) for index in negatives]
    return {
        "dice_mean_positives": _bootstrap_mean(overlap, owners, replicates),
        "dice_median_positives": metrics.bootstrap(
            lambda draw: float(np.median(overlap[draw])), owners, replicates=replicates
        ).to_dict(),
        "dice_quartiles_positives": np.percentile(overlap, [25, 75]).tolist(),
        "dice_mean_all_films_gated": float(
            np.mean(
                [
                    *(metrics.dice(shown[i], truth) for i, truth in truths.items()),
                    *(1.0 - shown[i].any() for i in negatives),
                ]
            )
        ),
        "peak_in_region": metrics.wilson(
            sum(_peak_hits(predictions.mask_logits[index], truth) for index, truth in located.items()), len(located)
        ).to_dict(),
        "negatives_without_region": metrics.wilson(
            sum(not found[index].any() for index in negatives), len(negatives)
        ).to_dict(),
        "false_positive_share_of_film": float(np.mean(areas)),
    }


def _strata(
    predictions: Predictions, choices: Choices, cache: FilmCache, films: Sequence[Film]
) -> dict[str, dict[str, float]]:
    """Measure AUC by projection, and sensitivity at the first operating point by size of the finding."""
    labels, views = _labels(films), np.array([film.view for film in films])
    probabilities = choices.probabilities(predictions)
    strata: dict[str, dict[str, float]] = {}
    for view in sorted(set(views) - {""}):
        inside = views == view
        strata[f"auc {view}"] = {"value": metrics.auc(labels[inside], probabilities[inside]), "n": int(inside.sum())}
    truths = _truths(cache, films)
    if truths:
        shares = {index: _share_of_film(truth, cache, films[index]) for index, truth in truths.items()}
        middle = float(np.median(list(shares.values())))
        point = choices.operating_points[0]
        for name, small in (("small", True), ("large", False)):
            chosen = [index for index, share in shares.items() if (share < middle) == small]
            if chosen:
                hits = int((probabilities[chosen] >= point.threshold).sum())
                strata[f"sensitivity {name}"] = metrics.wilson(hits, len(chosen)).to_dict() | {"median_share": middle}
    return strata


def _torch_predictor(network: nn.Module) -> Predictor:
    """Return a network as a predictor."""
    device = next(network.parameters()).device

    def run(images: NDArray[np.float32]) -> tuple[Floats, Floats]:
        network.eval()
        with torch.inference_mode():
            output = network(torch.from_numpy(images).to(device))
        return output.patch_logits.float().cpu().numpy(), output.mask_logits.float().cpu().numpy()

    return run


def _labels(films: Sequence[Film]) -> Flags:
    """Return the labels, (n,) boolean."""
    return np.array([bool(film.label) for film in films])


def _truths(cache: FilmCache, films: Sequence[Film]) -> dict[int, Flags]:
    """Return the mask (S, S) of every film that has one, by index; boxes are no masks."""
    return {
        index: region > 0
        for index, film in enumerate(films)
        if film.mask and (region := cache.region(film)) is not None
    }


def _peak_hits(mask_logits: Floats, truth: Flags) -> bool:
    """Tell whether the map's largest logit lies inside the truth."""
    return bool(truth.flat[int(mask_logits.argmax())])


def _share_of_film(mask: Flags, cache: FilmCache, film: Film) -> float:
    """Return the area of a mask as a share of the film's."""
    x0, y0, x1, y1 = cache.contents[cache.row_of[film.image]]
    return float(mask.sum() / ((x1 - x0) * (y1 - y0)))


def _bootstrap_mean(values: Floats, owners: Sequence[str], replicates: int) -> dict[str, float]:
    """Return a mean with its bootstrap interval."""
    return metrics.bootstrap(lambda draw: float(values[draw].mean()), owners, replicates=replicates).to_dict()


def _plain(measured: dict[str, Measured]) -> dict[str, dict[str, float]]:
    """Return measures as plain types."""
    return {name: value.to_dict() for name, value in measured.items()}


if __name__ == "__main__":
    main()
