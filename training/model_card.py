"""Write the model card of an engine: ``python -m training.model_card ENGINE --out docs/model-card.md``.

Every number comes from the engine's manifest, so that the card cannot say what the engine does not. With
``--cross-validated`` a gallery of films that networks of the same configuration got wrong, without having seen their
patients, is drawn beside it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from training.crossval import HELD_OUT, load_held_out
from training.data.cache import FilmCache
from training.data.folders import read_films
from training.metrics import Flags
from training.readings import Reading
from training.reproduce import ARMS, POINTS, read_arm
from training.scoring import RegionRules
from training.train import read_config

if TYPE_CHECKING:
    from ptxsdk.manifest import Manifest, Metric

GALLERY = "gallery.json"

MEASURES = {
    "auc": "AUC",
    "average_precision": "average precision",
    "sensitivity_at_balanced": "sensitivity at `balanced`",
    "specificity_at_balanced": "specificity at `balanced`",
    "precision_at_balanced": "precision at `balanced`",
    "accuracy_at_balanced": "accuracy at `balanced`",
    "sensitivity_at_high_sensitivity": "sensitivity at `high_sensitivity`",
    "specificity_at_high_sensitivity": "specificity at `high_sensitivity`",
    "dice_mean_positives": "Dice on positives with a mask, mean",
    "dice_median_positives": "Dice on positives with a mask, median",
    "dice_mean_positives_shown": "the same as shown: 0 where the film is not flagged",
    "dice_mean_all_films_shown": "Dice on all films as shown: 1 for a negative that shows nothing",
    "peak_in_region": "peak of the map in the mask or box",
    "box_iou_above_0_25": "a region's box and one of the truth overlap, IoU above 0.25",
    "negatives_without_region_shown": "negatives that show no region",
    "false_share_of_film_shown": "share of a negative film shown as a region",
    "ece": "expected calibration error, 15 bins of equal mass",
    "brier": "Brier score",
}
"""The measures of the card, by their label in the manifest."""

STRATA = {
    "auc_ap": "AUC, AP films",
    "auc_pa": "AUC, PA films",
    "sensitivity_ap": "sensitivity, AP films",
    "sensitivity_pa": "sensitivity, PA films",
    "specificity_ap": "specificity, AP films",
    "specificity_pa": "specificity, PA films",
    "sensitivity_below_1_of_the_film": "sensitivity, findings below 1 % of the film",
    "sensitivity_1_to_5": "sensitivity, findings of 1 to 5 %",
    "sensitivity_above_5": "sensitivity, findings above 5 %",
}
"""The strata of the card, by their label in the manifest; rates are at ``balanced``."""

LIMITS = """\
- The films come from one hospital in the United States and from years up to 2015. Performance elsewhere is not known;
  published systems lose more by a change of hospital than they gain by architecture.
- Children, laterals and views other than AP and PA were not measured and are out of scope.
- Small findings are missed more often than large ones, and AP films are read worse than PA films; see the strata.
- Whether chest tubes, subcutaneous emphysema or bullae mislead it is not measured: the data names no tubes. That tubes
  do is known of such systems (Rueckel et al. 2021), and confident wrong calls beside tubes were seen.
- The probability is calibrated to the share of positives stated above. Where pneumothorax is rarer or more frequent it
  reads too high or too low; the operating points are thresholds on that probability and move with nothing.
- Regions are drawn on flagged films alone. Their outline follows the masks of radiologists to about the Dice above,
  not to the pixel.
- Most masks in training are the output of another team's network, and most negative labels are text-mined.
- "Not flagged" means that the probability is below a threshold. It rules nothing out."""


def model_card(manifest: Manifest, parameters: dict[str, str], gallery: Sequence[dict[str, str]] = ()) -> str:
    """Return the model card of an engine in Markdown.

    Parameters
    ----------
    manifest : ptxsdk.manifest.Manifest
        Of the engine.
    parameters : dict of str to str
        What the network costs, by name.
    gallery : sequence of dict
        ``image`` and ``caption`` of films it got wrong.
    """
    variants = [name for name in manifest.networks if name != "fp32"]
    of_variants = tuple(f"{name}_" for name in variants)
    sets = list(dict.fromkeys(each.data for each in manifest.metrics if not each.name.startswith(of_variants)))
    columns = [f"set {chr(65 + index)}" for index in range(len(sets))]
    found = {(metric.data, metric.name): metric for metric in manifest.metrics}

    def rows(names: dict[str, str]) -> list[str]:
        return [
            " | ".join([f"| {title}", *(_value(found.get((data, name))) for data in sets)]) + " |"
            for name, title in names.items()
            if any((data, name) in found for data in sets)
        ]

    head = ["| | " + " | ".join(columns) + " |", "|---" * (len(sets) + 1) + "|"]
    grid = manifest.outputs.patch_logits.grid
    parts = [
        f"# Model card: {manifest.name} {manifest.version}",
        f"Written from the manifest of the engine of {manifest.created} by `python -m training.model_card`.",
        (
            "> **For research and integration. Not a medical device, not cleared by any authority, not for diagnostic "
            "use.** A film that is not flagged is not thereby free of pneumothorax."
        ),
        "## Intended use",
        manifest.intended_use,
        "## What it is",
        (
            "ClaSegNet (Zhao, Zhang, Avinash et al., C-MIMI 2018) on an EfficientNet-Lite0 feature pyramid: "
            f"{grid[0]} x {grid[1]} patch probabilities and a mask, from one "
            f"channel of {manifest.input.size[0]} x {manifest.input.size[1]} pixels."
        ),
        "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in parameters.items())]),
        "## Trained on",
        "\n".join(
            [
                "| films | n | credit | licence |",
                "|---|---|---|---|",
                *(f"| {each.name} | {each.n} | {each.credit} | {each.licence} |" for each in _data(manifest)),
            ]
        ),
        f"`{manifest.provenance.command}` (seed {manifest.provenance.seed}, {manifest.provenance.code_version}).",
        "## Decided on held-out films",
        "\n".join(_decisions(manifest)),
        "## Results",
        "Value (95 % interval), n films. Intervals draw patients.",
        "\n".join(f"- **{column}**: {data}" for column, data in zip(columns, sets, strict=True)),
        "\n".join([*head, *rows(MEASURES)]),
        "### Strata",
        "\n".join([*head, *rows(STRATA)]),
        *(["## Precisions", *_precisions(manifest, variants)] if variants else []),
        "## Limits",
        LIMITS,
    ]
    if gallery:
        parts += [
            "## Films it got wrong",
            (
                "Out of fold: read by a network of the same configuration that had not seen the patient. Truth solid "
                "cyan, found dashed orange. The most confident wrong calls, not a selection: films missed, and among "
                "those an expert called negative, films flagged. Films: NIH Clinical Center, ChestX-ray14 (Wang et al. "
                "2017, CVPR)."
            ),
            "\n\n".join(f"![{each['caption']}]({each['image']})\n\n{each['caption']}" for each in gallery),
        ]
    return "\n\n".join(parts) + "\n"


def draw_gallery(
    readings: Sequence[Reading],
    masks: NDArray[np.floating[Any]],
    rules: RegionRules,
    cache: FilmCache,
    folder: Path,
    *,
    count: int = 3,
) -> list[dict[str, str]]:
    """Draw the most confident wrong calls and return what `model_card` needs of them.

    Parameters
    ----------
    readings : sequence of Reading
        One a film, cross-fitted.
    masks : ndarray
        (n, S, S) mask logits of the same films.
    rules : RegionRules
        How the masks become regions.
    cache : FilmCache
        Where films and truth lie.
    folder : Path
        Folder of the images; it is made.
    count : int
        Films of each kind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wrong = {
        "missed": [i for i, each in enumerate(readings) if each.film.label and POINTS[0] not in each.flagged],
        "flagged wrongly": [
            i
            for i, each in enumerate(readings)
            if each.film.expert and not each.film.label and POINTS[0] in each.flagged
        ],
    }
    wrong["missed"].sort(key=lambda index: readings[index].probability)
    wrong["flagged wrongly"].sort(key=lambda index: -readings[index].probability)
    gallery = []
    for kind, indices in wrong.items():
        for index in indices[:count]:
            reading = readings[index]
            region = cache.region(reading.film)
            drawn = draw(cache.image(reading.film), None if region is None else region > 0, rules(masks[index]))
            name = f"{Path(reading.film.image).stem}.jpg"
            cv2.imwrite(str(folder / name), drawn, [cv2.IMWRITE_JPEG_QUALITY, 85])
            size = "" if reading.truth is None else f", finding {100 * reading.truth:.1f} % of the film"
            caption = f"{name.removesuffix('.jpg')}, {reading.film.view}: {kind}, probability {reading.probability:.3f}"
            gallery.append({"image": f"{folder.name}/{name}", "caption": caption + size})
    return gallery


def draw(image: NDArray[np.uint8], truth: Flags | None, found: Flags) -> NDArray[np.uint8]:
    """Return a film beside itself with the truth in solid cyan and what was found in dashed orange, (S, 2S, 3) BGR."""
    plain = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    marked = plain.copy()
    for mask, colour, dashed in ((truth, (255, 255, 0), False), (found, (0, 140, 255), True)):
        if mask is None:
            continue
        outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        for outline in outlines:
            points = outline[:, 0]
            kept = points[np.arange(len(points)) % 8 < 4] if dashed else points
            marked[kept[:, 1], kept[:, 0]] = colour
    return np.asarray(np.hstack([plain, marked]))


def _value(metric: Metric | None) -> str:
    """Return a measure with its interval and n."""
    if metric is None:
        return "-"
    digits = 4 if metric.high < 0.02 else 3
    return f"{metric.value:.{digits}f} ({metric.low:.{digits}f} to {metric.high:.{digits}f}), {metric.n}"


def _precisions(manifest: Manifest, variants: Sequence[str]) -> list[str]:
    """Return what the variants change against fp32, as paragraphs."""
    rows = []
    data = ""
    for name in variants:
        accuracy = manifest.networks[name].accuracy or {}
        changes = []
        for label in ("auc_change", "dice_change", "peak_change"):
            metric = next((each for each in manifest.metrics if each.name == f"{name}_{label}"), None)
            changes.append(
                "-" if metric is None else f"{metric.value:+.4f} ({metric.low:+.4f} to {metric.high:+.4f}), {metric.n}"
            )
            data = metric.data if metric else data
        flips = f"{accuracy['flips']:.0f}, farthest {accuracy['farthest_flip']:.3f}" if accuracy else "-"
        rows.append(f"| {name} | {' | '.join(changes)} | {flips} |")
    return [
        (
            "What a variant changes against fp32 on the same films, with paired 95 % intervals over patients. A "
            "decision may flip only where the fp32 probability lies within .02 of the operating point; flips are "
            f"counted over all points. Measured on {data.rpartition(';')[0]}. Films the network was trained on are "
            "read with more certainty than others, so single decisions may flip a little more often elsewhere."
        ),
        "\n".join(["| | AUC | Dice | peak in region | decisions that flip |", "|---" * 5 + "|", *rows]),
    ]


def _data(manifest: Manifest) -> Sequence[Any]:
    """Return the sets it was trained on."""
    return manifest.provenance.training_data


def _decisions(manifest: Manifest) -> list[str]:
    """Return the choices of an engine as a list."""
    pooled = f", k = {manifest.aggregation.k}" if manifest.aggregation.k else ""
    rules = manifest.regions
    return [
        f"- Image score: `{manifest.aggregation.method}` of the {manifest.aggregation.source} logits{pooled}.",
        (
            f"- Calibration (Platt): scale {manifest.calibration.scale:.4f}, bias {manifest.calibration.bias:.4f}, on "
            f"{manifest.calibration.data}."
        ),
        *(
            f"- Operating point `{point.name}`: probability {point.threshold:.4f}, sensitivity "
            f"{point.sensitivity.value:.3f} ({point.sensitivity.low:.3f} to {point.sensitivity.high:.3f}), specificity "
            f"{point.specificity.value:.3f} ({point.specificity.low:.3f} to {point.specificity.high:.3f})."
            for point in manifest.operating_points
        ),
        (
            f"- Regions: 8-connected pixels above {rules.low} that hold one above {rules.high}, of at least "
            f"{rules.min_area} pixels of the network's input."
        ),
    ]


def cost(size: int, network: bytes) -> dict[str, str]:
    """Return what a network costs, counted from its ONNX file.

    Parameters
    ----------
    size : int
        Side of its input.
    network : bytes
        The ONNX file.
    """
    import onnx

    from ptxsdk.build.network import constants, multiply_accumulates

    model = onnx.load_from_string(network)
    macs = sum(multiply_accumulates(model).values())
    at_512 = macs * (512 / size) ** 2
    return {
        "parameters": f"{sum(weights.size for weights in constants(model).values()) / 1e6:.2f} million",
        "fp32 network": f"{len(network) / 1e6:.1f} MB",
        "multiply-accumulates": f"{macs / 1e9:.2f} G at {size} x {size}, {at_512 / 1e9:.2f} G at 512 x 512",
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a model card from the command line."""
    from ptxsdk import Engine

    parser = argparse.ArgumentParser(
        prog="python -m training.model_card",
        description="Write the model card of an engine from its manifest.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("engine", type=Path, help="engine file")
    add("--out", type=Path, required=True, help="Markdown file to write; the gallery lies in a folder beside it")
    add("--data", type=Path, help="folder of films, to draw the gallery anew")
    add("--cache", type=Path, help="folder of preprocessed films")
    add("--cross-validated", type=Path, help="folder of training.reproduce with the configuration of the engine")
    add("--arm", choices=list(ARMS), default="clasegnet", help="arm of it")
    options = parser.parse_args(arguments)
    engine = Engine.open(options.engine)
    folder = options.out.with_name("gallery")
    if options.cross_validated:
        config = read_config(options.cross_validated / f"{options.arm}-0")
        films = read_films(options.data)
        cache = FilmCache.open(options.data, films, config.size, options.cache or options.cross_validated / "cache")
        paths = [options.cross_validated / f"{options.arm}-{fold}" / HELD_OUT for fold in range(config.folds)]
        readings = read_arm(options.arm, films, cache, config.folds, options.cross_validated)
        masks = load_held_out(paths, films)[1].mask_logits
        drawn = draw_gallery(readings, masks, RegionRules.of(engine.manifest), cache, folder)
        (folder / GALLERY).write_text(json.dumps(drawn, indent=1) + "\n")
    gallery = json.loads((folder / GALLERY).read_text()) if (folder / GALLERY).exists() else []
    costs = cost(engine.manifest.input.size[0], engine.network("fp32"))
    options.out.write_text(model_card(engine.manifest, costs, gallery))


if __name__ == "__main__":
    main()
