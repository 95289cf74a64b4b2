"""Evaluate an engine file or a run: ``python -m training.evaluate ENGINE|RUNDIR --data DIR --out DIR``.

An engine is measured through the SDK itself, from the stored film to what an integrator gets: what ships is what is
measured, and nothing is chosen. A run is measured on its own split: every choice (aggregation, calibration,
thresholds, region rules) is made on its validation films, and the test films are measured with what was chosen.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import track
from torch import nn

from training.choices import Choices, choose
from training.data.cache import FilmCache
from training.data.films import Film
from training.data.folders import read_films
from training.data.sources import source_of
from training.data.splits import Split, patient_folds
from training.measure import measure
from training.predictions import Predictor, onnx_predictor, predict
from training.readings import Reading, read_engine, read_predictions
from training.report import choose_panels, make_panels, write_report
from training.scoring import RegionRules, prescribed
from training.train import BEST, load_network, split

if TYPE_CHECKING:
    from ptxsdk import Detector

logger = logging.getLogger(__name__)

METRICS = "metrics.json"
REPORT = "report.html"
LABELS = ("trusted", "expert", "all")
TRAINED_ON = "NOT A TEST: the engine was trained on films of these sets, and these may be among them."


def evaluate_run(
    network: nn.Module | Predictor,
    cache: FilmCache,
    parts: Split,
    *,
    system: str = "clasegnet",
    replicates: int = 2000,
) -> tuple[dict[str, Any], dict[str, list[Reading]]]:
    """Choose on validation films and measure both sets; a `system` may prescribe its image score.

    Returns
    -------
    dict
        ``choices``, the AUC of every aggregation compared, and the measures of ``validation`` and ``test``.
    dict
        The readings of the same two sets.
    """
    predictions = predict(network, cache, parts.validation)
    allowed = prescribed(system, predictions.patch_logits.shape[-1])
    choices, areas = choose(predictions, cache, parts.validation, aggregations=allowed)
    points = [point.name for point in choices.operating_points]
    readings = {
        "validation": read_predictions(predictions, choices, cache, parts.validation),
        "test": read_predictions(predict(network, cache, parts.test), choices, cache, parts.test),
    }
    measured = {name: measure(own, points, replicates=replicates) for name, own in readings.items()}
    return {"choices": asdict(choices), "aggregation_auc_on_validation": areas, **measured}, readings


def evaluate_engine(
    detector: Detector, data: Path, cache: FilmCache, films: Sequence[Film], *, replicates: int = 2000
) -> tuple[dict[str, Any], list[Reading], dict[str, str]]:
    """Measure an engine on films through the SDK.

    A film that cannot be read or that the gate refuses has no score; it is left out of the measures and named. Any
    other error of the SDK is one of ours, and raised.

    Returns
    -------
    dict
        The measures; see `training.measure.measure`.
    list of Reading
        One a film that was scored.
    dict of str to str
        The error of every film refused, by path.
    """
    from ptxsdk import InputError, OutOfScope

    readings: list[Reading] = []
    refused: dict[str, str] = {}
    for film in track(films, description="reading"):
        try:
            readings += read_engine(detector, data, cache, [film])
        except (InputError, OutOfScope) as error:
            refused[film.image] = str(error)
    if not readings:
        raise ValueError(f"no film could be scored; the first error: {next(iter(refused.values()), 'no film')}")
    points = [point.name for point in detector.engine.manifest.operating_points]
    default = detector.engine.manifest.default_operating_point
    points.sort(key=lambda name: name != default)
    return measure(readings, points, replicates=replicates), readings, refused


def select(films: Sequence[Film], labels: str, *, folds: int = 5, fold: int | None = None) -> list[Film]:
    """Return the films with trusted labels, with experts' alone, or all; of one patient fold, or of all."""
    chosen = [film for film in films if labels == "all" or (film.expert if labels == "expert" else film.trusted)]
    if fold is None:
        return chosen
    fold_of = patient_folds(films, folds)
    return [film for film in chosen if fold_of.get(film.patient) == fold]


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluate",
        description="Measure an engine through the SDK, or a run on its own split; write JSON and an HTML report.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("what", type=Path, metavar="ENGINE|RUNDIR", help="an engine file, or the folder of a run")
    add("--data", type=Path, required=True, help="folder of films in a layout training.data reads")
    add("--out", type=Path, help="folder to write to; RUNDIR, or the working folder for an engine")
    add("--cache", type=Path, help="folder of preprocessed films; OUT/cache when not given")
    add("--labels", choices=LABELS, default="trusted", help="films to measure an engine on, by who labelled them")
    add("--folds", type=int, default=5, help="patient folds, for --fold")
    add("--fold", type=int, help="measure an engine on this patient fold alone")
    add("--precision", default="fp32", help="arithmetic of the engine")
    add("--checkpoint", default=BEST, help="checkpoint of a run")
    add("--onnx", type=Path, help="measure this ONNX file in place of a run's checkpoint")
    add("--panels", type=int, default=4, help="films shown for each outcome in the report")
    add("--replicates", type=int, default=2000, help="draws of the bootstrap")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    out = options.out or (options.what if options.what.is_dir() else Path())
    out.mkdir(parents=True, exist_ok=True)
    (_evaluate_run if options.what.is_dir() else _evaluate_engine)(options, out)


def _evaluate_run(options: argparse.Namespace, out: Path) -> None:
    """Measure a run on its own split."""
    network, config = load_network(options.what, checkpoint=options.checkpoint)
    films = read_films(options.data)
    cache = FilmCache.open(options.data, films, config.size, options.cache or out / "cache")
    parts = split(films, cache, config)
    predictor: nn.Module | Predictor = onnx_predictor(options.onnx) if options.onnx else network
    results, readings = evaluate_run(predictor, cache, parts, system=config.system, replicates=options.replicates)
    (out / METRICS).write_text(json.dumps({"config": asdict(config), **results}, indent=1))
    choices = Choices.from_dict(results["choices"])
    chosen = choose_panels(readings["test"], options.panels, choices.operating_points[0].name)
    logits = predict(predictor, cache, [readings["test"][index].film for index in chosen])
    panels = make_panels([readings["test"][index] for index in chosen], logits.mask_logits, choices.regions, cache)
    write_report(
        out / REPORT,
        f"{config.system}, {config.backbone}",
        readings,
        {name: results[name] for name in readings},
        panels=panels,
        notes=["Every choice was made on the validation films; nothing was chosen on the test films."],
    )
    logger.info("test: %s", results["test"]["classification"]["auc"])


def _evaluate_engine(options: argparse.Namespace, out: Path) -> None:
    """Measure an engine through the SDK."""
    from ptxsdk import Detector, __version__

    films = read_films(options.data)
    chosen = select(films, options.labels, folds=options.folds, fold=options.fold)
    with Detector(options.what, profile="cade", precision=options.precision, device="cpu") as detector:
        manifest = detector.engine.manifest
        cache = FilmCache.open(options.data, films, manifest.input.size[0], options.cache or out / "cache")
        measured, readings, refused = evaluate_engine(
            detector, options.data, cache, chosen, replicates=options.replicates
        )
        engine = detector.engine.id
        title = f"{engine.name} {engine.version}, {detector.precision} in {detector.backend}"
        shown = choose_panels(readings, options.panels, manifest.default_operating_point)
        maps = [detector.predict(options.data / readings[index].film.image).mask_logits for index in shown]
    rules = RegionRules.of(manifest)
    trained_on = {source_of(film.origin).name for film in chosen} & {
        source.name for source in manifest.provenance.training_data
    }
    results = {
        "engine": asdict(engine),
        "ptxsdk": __version__,
        "may_hold_training_films": bool(trained_on),
        "refused": refused,
        **measured,
    }
    (out / METRICS).write_text(json.dumps(results, indent=1))
    write_report(
        out / REPORT,
        title,
        {title: readings},
        {title: measured},
        panels=make_panels([readings[index] for index in shown], maps, rules, cache),
        notes=[
            f"Read through ptxsdk {__version__}; engine SHA-256 {engine.sha256}.",
            f"{len(refused)} of {len(chosen)} films could not be read or were refused by the input gate; no score.",
            *([TRAINED_ON] if trained_on else []),
        ],
    )
    logger.info("%s: %s", title, measured["classification"]["auc"])


if __name__ == "__main__":
    main()
