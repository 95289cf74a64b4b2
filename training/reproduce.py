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

from ptxsdk.files import write_file
from training.choices import labels_of
from training.crossval import HELD_OUT, cross_fit, differences, fold_config, load_held_out, run_fold
from training.data.cache import FilmCache
from training.data.films import Film, describe
from training.data.folders import read_films
from training.data.splits import describe_split, patient_folds
from training.learner import TrainConfig
from training.measure import compare, measure, probabilities_of
from training.metrics import auc
from training.readings import Reading
from training.scoring import prescribed
from training.train import CONFIG, add_config_options, add_run_options, config_of, load_lungs, read_config, split

logger = logging.getLogger(__name__)

RESULTS = "results.json"
TABLE = "results.md"
REPORT = "report.html"
FIXED = (
    *("system", "supervision", "made", "split", "validation_fold", "test_fold", "schedule", "patience"),
    *("paper_floor", "exact_product"),
)
"""Fields of `TrainConfig` that the arms and the folds decide."""
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
    """

    title: str
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def system(self) -> str:
        """The network and loss; see `TrainConfig`."""
        return str(self.changes.get("system", "clasegnet"))


ARMS = {
    "clasegnet": Arm(title="ClaSegNet, masks"),
    "boxes": Arm(title="ClaSegNet, boxes about the masks", changes={"supervision": "boxes"}),
    "image": Arm(title="ClaSegNet, image labels only", changes={"supervision": "image"}),
    "made": Arm(title="ClaSegNet, masks and made positives", changes={"made": 0.25}),
    "classifier": Arm(
        title="Classifier with global pooling, image labels",
        changes={"system": "classifier", "supervision": "image"},
    ),
    "li2018": Arm(
        title="Li et al. 2018, boxes about the masks",
        changes={"system": "li2018", "supervision": "boxes"},
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


def readings_file(out: Path, name: str) -> Path:
    """Return the file that keeps the readings of an arm."""
    return out / f"readings-{name}.json"


def read_arm(name: str, films: Sequence[Film], cache: FilmCache, folds: int, out: Path) -> list[Reading]:
    """Read every held-out film of a finished arm, with choices made on the other folds.

    Where the runs are gone and their readings were kept, those are returned.
    """
    if not runs_finished(name, out, folds):
        by_image = {film.image: film for film in films}
        return [Reading.from_dict(row, by_image) for row in json.loads(readings_file(out, name).read_text())]
    found, predictions, fold_of = load_held_out([out / f"{name}-{fold}" / HELD_OUT for fold in range(folds)], films)
    allowed = prescribed(ARMS[name].system, predictions.patch_logits.shape[-1])
    return cross_fit(found, predictions, fold_of, cache, aggregations=allowed)


def runs_finished(name: str, out: Path, folds: int) -> bool:
    """Tell whether every fold of an arm is done."""
    return all((out / f"{name}-{fold}" / HELD_OUT).exists() for fold in range(folds))


def finished(out: Path, folds: int) -> list[str]:
    """Return the arms of which every fold is done, or the readings are kept."""
    return [name for name in ARMS if runs_finished(name, out, folds) or readings_file(out, name).exists()]


def claim(out: Path, config: TrainConfig) -> None:
    """Tie a folder to one configuration.

    Raises
    ------
    ValueError
        It holds a comparison of another.
    """
    stored = out / CONFIG
    common = fold_config(config, 0)
    if stored.exists() and (found := read_config(out)) != common:
        raise ValueError(f"{out.name} holds a comparison of another configuration: {differences(found, common)}")
    out.mkdir(parents=True, exist_ok=True)
    write_file(stored, (json.dumps(asdict(common), indent=2) + "\n").encode())


def summarise(
    readings: Mapping[str, Sequence[Reading]], fold_of: Mapping[str, int], *, replicates: int = 2000
) -> dict[str, Any]:
    """Measure every arm, and every arm against the first.

    Parameters
    ----------
    readings : dict of str to sequence of Reading
        By arm, the same films in the same order.
    fold_of : dict of str to int
        Fold of each patient.
    replicates : int
        Draws of the bootstrap.

    Returns
    -------
    dict
        ``arms``: by name, measures on ``trusted`` labels and on ``expert`` labels alone, and the AUC of each fold by
        itself; ``compared``: by name, the first arm less this one, on trusted labels.
    """
    first, *others = readings
    return {
        "arms": {
            name: {
                "title": ARMS[name].title,
                "trusted": measure(own, POINTS, replicates=replicates),
                "expert": measure([each for each in own if each.film.expert], POINTS, replicates=replicates),
                "auc_by_fold": auc_by_fold(own, fold_of),
            }
            for name, own in readings.items()
        },
        "compared": {
            f"{first} less {name}": compare(readings[first], readings[name], replicates=replicates) for name in others
        },
    }


def auc_by_fold(readings: Sequence[Reading], fold_of: Mapping[str, int]) -> list[float]:
    """Return the AUC of each fold by itself."""
    folds = np.array([fold_of[reading.film.patient] for reading in readings])
    labels, scores = labels_of([reading.film for reading in readings]), probabilities_of(readings)
    return [round(auc(labels[folds == fold], scores[folds == fold]), 4) for fold in range(int(folds.max()) + 1)]


def table(results: Mapping[str, Any], labels: str = "trusted") -> str:
    """Return the paper's table in Markdown: accuracy, precision, recall, AUC and Dice at ``balanced``."""
    rows = [
        "| system | accuracy | precision | recall | AUC (of each fold) | Dice | peak in region | ECE |",
        "|---" * 8 + "|",
    ]
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
        cells = [_with_interval(value) for value in values]
        if labels == "trusted":
            cells[3] += f" ({', '.join(f'{area:.3f}' for area in arm['auc_by_fold'])})"
        rows.append(" | ".join([f"| {arm['title']}", *cells]) + " |")
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

    write_file(out / RESULTS, json.dumps(results, indent=1).encode())
    for name, own in readings.items():
        rows = [reading.to_dict() for reading in own]
        write_file(readings_file(out, name), ("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n").encode())
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
    write_file(out / TABLE, ("\n\n".join(parts) + "\n").encode())
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
    add_config_options(parser, only=[each.name for each in dataclasses.fields(TrainConfig) if each.name not in FIXED])
    add_run_options(parser)
    options = parser.parse_args(arguments)
    if "made" in options.arms and not options.lungs and not options.tables_only:
        parser.error("the arm 'made' needs --lungs, from python -m training.lungs; or name the other arms with --arms")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if options.threads:
        torch.set_num_threads(options.threads)
    config = config_of(options)
    claim(options.out, config)
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
        "setting": setting(config, films),
        "films": describe(films),
        "config": asdict(fold_config(config, 0)),
        **summarise(readings, patient_folds(films, config.folds), replicates=options.replicates),
    }
    write_results(results, readings, options.out)
    print((options.out / TABLE).read_text())


def setting(config: TrainConfig, films: Sequence[Film]) -> str:
    """Say how the arms were trained and what the figures do not tell."""
    warm = f", the first {config.warm_steps} of them at {config.warm_size}" if config.warm_steps else ""
    return (
        f"{config.folds}-fold cross-validation {describe_split(films)}, pooled out of fold; backbone {config.backbone} "
        f"at {config.size} x {config.size}, {config.steps} steps of {config.batch} films{warm}, first weights "
        f"{config.weights}, one seed an arm. Aggregation, calibration, thresholds and region rules of a fold were "
        "chosen on the other folds. The recipe itself (losses, augmentation, steps) was developed on these films, "
        "which makes every arm look a little better than it is. Films without a patient id that look like a held-out "
        f"film (similarity {config.look_alike}) left training; this finds about half of the pairs of one patient. "
        "Masks marked as predicted come from a network that may have learnt from films measured here. Intervals are "
        "95 % over films and patients; they do not hold the chance of training anew."
    )


if __name__ == "__main__":
    main()
