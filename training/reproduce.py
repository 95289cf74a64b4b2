"""Train and compare the systems of the paper: ``python -m training.reproduce --data DIR --out DIR``.

Every arm is cross-validated by patient: one run a fold, the same films, folds, steps and augmentation for all. A film
is read by the network that never saw its patient, with aggregation, calibration and thresholds chosen on the other
folds. The tables are the paper's, with intervals, and every arm is held against the first with paired tests. Arms
and folds that are done are not done again, so a run that was broken off goes on where it stood.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.crossval import HELD_OUT, cross_fit, fold_config, load_held_out, run_fold
from training.data.cache import FilmCache
from training.data.films import Film, describe
from training.data.folders import read_films
from training.learner import TrainConfig
from training.measure import compare, measure
from training.readings import Reading
from training.scoring import Aggregation
from training.train import add_config_options, add_run_options, config_of, load_lungs, split

logger = logging.getLogger(__name__)

RESULTS = "results.json"
TABLE = "results.md"
REPORT = "report.html"
POINTS = ("balanced", "high_sensitivity")
TRUSTED = (
    "Trusted labels: masks, boxes and expert panels for positives; for negatives experts, or reports that do not "
    "mention the finding."
)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One system of the comparison.

    Attributes
    ----------
    title : str
        What it is, in a table.
    changes : dict
        Fields of `TrainConfig` that differ from the common configuration.
    mean_of_patches : bool
        The system prescribes its image score: the mean of all patches, as a classifier pools.
    noisy_or : bool
        The system prescribes its image score: the noisy-OR.
    """

    title: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    mean_of_patches: bool = False
    noisy_or: bool = False

    def aggregations(self, grid: int) -> list[Aggregation] | None:
        """Return the aggregations to choose from on a grid of this side; None: all."""
        if self.mean_of_patches:
            return [Aggregation(method="top_k", k=grid * grid)]
        return [Aggregation(method="noisy_or")] if self.noisy_or else None


ARMS = {
    "clasegnet": Arm(title="ClaSegNet, masks"),
    "boxes": Arm(title="ClaSegNet, boxes about the masks", changes={"supervision": "boxes"}),
    "image": Arm(title="ClaSegNet, image labels only", changes={"supervision": "image"}),
    "made": Arm(title="ClaSegNet, masks and made positives", changes={"made": 0.25}),
    "classifier": Arm(
        title="Classifier with global pooling, image labels",
        changes={"system": "classifier", "supervision": "image"},
        mean_of_patches=True,
    ),
    "li2018": Arm(
        title="Li et al. 2018, boxes about the masks",
        changes={"system": "li2018", "supervision": "boxes"},
        noisy_or=True,
    ),
}
"""The arms by name; the first is the one the others are held against."""


def run_arm(
    name: str,
    config: TrainConfig,
    films: Sequence[Film],
    cache: FilmCache,
    out: Path,
    *,
    folds: Sequence[int] | None = None,
    lungs: dict[str, NDArray[np.uint8]] | None = None,
    **options: Any,
) -> None:
    """Train one arm on every fold, or on some; what is done is not done again.

    Parameters
    ----------
    name : str
        A key of `ARMS`.
    config : TrainConfig
        The common configuration.
    films : sequence of Film
        All films.
    cache : FilmCache
        Where they lie.
    out : Path
        Folder of the comparison; the run of a fold lies in ``NAME-FOLD``.
    folds : sequence of int or None
        Folds to run; None: all.
    lungs : dict of str to ndarray
        Lung outlines by image path, for arms that make positives.
    **options
        Passed to `training.train.fit`.
    """
    own = dataclasses.replace(config, **ARMS[name].changes)
    for fold in range(config.folds) if folds is None else folds:
        parts = split(films, cache, fold_config(own, fold))
        run_fold(own, fold, cache, parts, out / f"{name}-{fold}", lungs=lungs if own.made else None, **options)


def read_arm(name: str, films: Sequence[Film], cache: FilmCache, folds: int, out: Path) -> list[Reading]:
    """Read every held-out film of a finished arm, with choices made on the other folds."""
    found, predictions, fold_of = load_held_out([out / f"{name}-{fold}" / HELD_OUT for fold in range(folds)], films)
    return cross_fit(
        found, predictions, fold_of, cache, aggregations=ARMS[name].aggregations(predictions.patch_logits.shape[-1])
    )


def finished(out: Path, folds: int) -> list[str]:
    """Return the arms of which every fold is done."""
    return [name for name in ARMS if all((out / f"{name}-{fold}" / HELD_OUT).exists() for fold in range(folds))]


def summarise(readings: Mapping[str, Sequence[Reading]], *, replicates: int = 2000) -> dict[str, Any]:
    """Measure every arm, and every arm against the first.

    Returns
    -------
    dict
        ``arms``: by name, measures on ``trusted`` labels and on ``expert`` labels alone; ``compared``: by name, the
        first arm less this one, on trusted labels.
    """
    first, *others = readings
    return {
        "arms": {
            name: {
                "title": ARMS[name].title,
                "trusted": measure(own, POINTS, replicates=replicates),
                "expert": measure([each for each in own if each.film.expert], POINTS, replicates=replicates),
            }
            for name, own in readings.items()
        },
        "compared": {
            f"{first} less {name}": compare(readings[first], readings[name], replicates=replicates) for name in others
        },
    }


def table(results: Mapping[str, Any], labels: str = "trusted") -> str:
    """Return the paper's table in Markdown: accuracy, precision, recall, AUC and Dice at ``balanced``."""
    rows = ["| system | accuracy | precision | recall | AUC | Dice | peak in region | ECE |", "|---" * 8 + "|"]
    for arm in results["arms"].values():
        own = arm[labels]
        point = own["operating_points"]["balanced"]
        values = [
            point["accuracy"],
            point["precision"],
            point["sensitivity"],
            own["classification"]["auc"],
            own["localization"]["dice_mean_positives"],
            own["localization"]["peak_in_region"],
            own["classification"]["ece"],
        ]
        rows.append(" | ".join([f"| {arm['title']}", *(_with_interval(value) for value in values)]) + " |")
    return "\n".join(rows)


def comparison_table(results: Mapping[str, Any]) -> str:
    """Return the paired differences in Markdown."""
    rows = ["| | AUC (bootstrap over patients) | AUC (DeLong) | Dice | peak in region |", "|---" * 5 + "|"]
    for name, own in results["compared"].items():
        exact = f"{_with_interval(own['auc_delong'])}, p = {own['auc_delong']['p']:.2g}"
        values = [_with_interval(own[key]) for key in ("auc", "dice_mean_positives", "peak_in_region")]
        rows.append(f"| {name} | {values[0]} | {exact} | {values[1]} | {values[2]} |")
    return "\n".join(rows)


def _with_interval(measured: Mapping[str, float | None]) -> str:
    """Return ``value (low to high)``."""
    if measured["value"] is None:
        return "-"
    return f"{measured['value']:.3f} ({measured['low']:.3f} to {measured['high']:.3f})"


def write_results(results: dict[str, Any], readings: Mapping[str, Sequence[Reading]], out: Path) -> None:
    """Write measures and readings as JSON, the tables as Markdown and the report as HTML."""
    from training.report import write_report

    (out / RESULTS).write_text(json.dumps(results, indent=1))
    for name, own in readings.items():
        rows = [reading.to_dict() for reading in own]
        (out / f"readings-{name}.json").write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    parts = [
        f"# {results['title']}",
        results["setting"],
        TRUSTED,
        table(results),
        "Films labelled by radiologists and expert panels alone:",
        table(results, "expert"),
        "Paired differences on trusted labels, with 95 % intervals:",
        comparison_table(results),
    ]
    (out / TABLE).write_text("\n\n".join(parts) + "\n")
    write_report(
        out / REPORT,
        results["title"],
        {ARMS[name].title: own for name, own in readings.items()},
        {arm["title"]: arm["trusted"] for arm in results["arms"].values()},
        notes=[results["setting"]],
        comparisons=results["compared"],
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare the systems from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.reproduce",
        description="Cross-validate ClaSegNet, its ablations and its baselines on a folder of films.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of films in a layout training.data reads")
    add("--out", type=Path, required=True, help="folder of the comparison: runs, tables, report")
    add("--cache", type=Path, help="folder of preprocessed films; OUT/cache when not given")
    add("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="arms to train")
    add("--only-folds", nargs="+", type=int, help="folds to train; all when not given")
    add("--tables-only", action="store_true", help="train nothing; measure what is finished")
    add("--replicates", type=int, default=2000, help="draws of the bootstrap")
    add_config_options(parser)
    add_run_options(parser)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if options.threads:
        torch.set_num_threads(options.threads)
    config = config_of(options)
    films = read_films(options.data)
    cache = FilmCache.open(options.data, films, config.size, options.cache or options.out / "cache")
    for name in () if options.tables_only else options.arms:
        run_arm(
            name,
            config,
            films,
            cache,
            options.out,
            folds=options.only_folds,
            lungs=load_lungs(options.lungs, config.size) if options.lungs else None,
            precision=options.precision,
            workers=options.workers,
            devices=options.devices,
            progress=options.progress,
        )
    done = finished(options.out, config.folds)
    if not done:
        logger.info("no arm is finished; nothing to measure")
        return
    readings = {name: read_arm(name, films, cache, config.folds, options.out) for name in done}
    results = {
        "title": "Cross-validation of ClaSegNet, its ablations and its baselines",
        "setting": setting(config),
        "films": describe(films),
        "config": asdict(config),
        **summarise(readings, replicates=options.replicates),
    }
    write_results(results, readings, options.out)
    print((options.out / TABLE).read_text())


def setting(config: TrainConfig) -> str:
    """Say in a sentence how the arms were trained."""
    return (
        f"{config.folds}-fold cross-validation by patient, pooled out of fold; backbone {config.backbone} at "
        f"{config.size} x {config.size}, {config.steps} steps of {config.batch} films, first weights "
        f"{config.weights}; choices made on the other folds, none on the fold measured. Films without a patient id "
        f"that look like a held-out film (similarity {config.look_alike}) left training; this finds about half of the "
        "pairs of one patient. Intervals are 95 %."
    )


if __name__ == "__main__":
    main()
