"""A report of measured systems as one HTML file: the deck's tables, curves, calibration, localization and films."""

from __future__ import annotations

import base64
import html
import io
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from training.choices import labels_of
from training.data.cache import FilmCache
from training.measure import probabilities_of
from training.metrics import Bins, Flags, Floats, calibration_bins, cut_counts, wilson
from training.predictions import without_padding
from training.readings import Reading
from training.scoring import RegionRules, sigmoid

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Plain = dict[str, Any]

OUTCOMES = {
    (True, True): "True positives: pneumothorax, flagged",
    (True, False): "False negatives: pneumothorax, not flagged",
    (False, True): "False positives: negative by label, flagged",
    (False, False): "True negatives: negative by label, not flagged",
}
"""Headings by (label, flagged), in the order shown."""

LOCALIZATION = {
    "dice_mean_positives": "Dice on positives, mean",
    "dice_median_positives": "Dice on positives, median",
    "dice_quartiles_positives": "Dice on positives, quartiles",
    "dice_mean_positives_shown": "Dice on positives as shown: 0 where the film is not flagged",
    "dice_mean_all_films_shown": "Dice on all films as shown: 1 for a negative that shows nothing",
    "peak_in_region": "Peak of the map inside the mask, or else a box",
    "peak_in_box": "Peak of the map inside the mask, or else a box; films with a radiologist's box",
    "negatives_without_region_shown": "Negatives that show no region",
    "false_share_of_film_shown": "Share of the film shown as a region, on negatives",
}

STATEMENT = "For research and integration. Not a medical device; not for diagnosis."
CHOSEN = (
    "The films of every outcome are ranked by probability and taken at even steps, from the most to the least probable "
    "(of one film: the median); nothing else decides which are shown."
)

# Of Okabe and Ito's palette, blue lightened so that it shows on a dark page too.
COLOURS = ("#2f7fd0", "#d55e00", "#009e73", "#cc79a7", "#c48a00", "#56b4e9")
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 1.5), (1.5, 1.2), (5, 1.5, 1, 1.5))
MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆"}
TRUTH_COLOUR, FOUND_COLOUR = "#35d0ff", "#ff9f1c"
HEAT_BGR = (28, 60, 255)
HEAT_SIDE = 128

_INK = "#010203"  # drawn by matplotlib, then replaced by the page's own text colour


@dataclass(frozen=True, kw_only=True, eq=False)
class Panel:
    """One film with its ground truth and what a system found.

    Attributes
    ----------
    film : ndarray
        (S, S) uint8, as the network saw it.
    mask_logits : ndarray
        (S, S) the map.
    truth : ndarray or None
        (S, S) boolean, the mask or the boxes; None where there is none.
    found : ndarray
        (S, S) boolean, the regions, whether the film is flagged or not.
    label : bool
        Whether the film is labelled as pneumothorax.
    probability : float
        Calibrated probability.
    flagged : tuple of str
        Operating points whose threshold it reaches.
    caption : str
        Which film it is.
    """

    film: NDArray[np.uint8]
    mask_logits: Floats
    truth: Flags | None
    found: Flags
    label: bool
    probability: float
    flagged: tuple[str, ...]
    caption: str


def roc_points(labels: Flags, scores: Floats) -> tuple[Floats, Floats]:
    """Return false and true positive rates, from (0, 0) to (1, 1), one point a distinct score.

    The area under the straight lines between them is `training.metrics.auc`, ties included.

    Raises
    ------
    ValueError
        A class is missing.
    """
    hits, called = cut_counts(labels, scores)
    if not 0 < hits[-1] < labels.size:
        raise ValueError("a ROC curve needs films of both classes")
    misses = called - hits
    return np.concatenate([[0.0], misses / misses[-1]]), np.concatenate([[0.0], hits / hits[-1]])


def precision_recall_points(labels: Flags, scores: Floats) -> tuple[Floats, Floats]:
    """Return recall and precision, from recall 0 to 1, one point a distinct score.

    The area under the steps that reach back from each point is `training.metrics.average_precision`.

    Raises
    ------
    ValueError
        There is no positive.
    """
    hits, called = cut_counts(labels, scores)
    if not hits[-1]:
        raise ValueError("a precision-recall curve needs a positive")
    precision = hits / called
    return np.concatenate([[0.0], hits / hits[-1]]), np.concatenate([precision[:1], precision])


def choose_panels(readings: Sequence[Reading], count: int, point: str) -> list[int]:
    """Choose films to show for every outcome at an operating point, by rank of probability alone.

    Parameters
    ----------
    readings : sequence of Reading
        The films.
    count : int
        Films to show for each outcome, or all where there are fewer.
    point : str
        Name of the operating point.

    Returns
    -------
    list of int
        Indices: outcomes in the order of `OUTCOMES`, in each the films at even steps from the most to the least
        probable; the median where `count` is 1.
    """
    chosen: list[int] = []
    for outcome in OUTCOMES:
        own = [
            index for index, each in enumerate(readings) if (bool(each.film.label), point in each.flagged) == outcome
        ]
        own.sort(key=lambda index: (-readings[index].probability, readings[index].film.image))
        steps = np.linspace(0, len(own) - 1, min(count, len(own)))
        if count == 1 and own:
            steps = np.array([(len(own) - 1) // 2])
        chosen += [own[rank] for rank in np.rint(steps).astype(int)]
    return chosen


def make_panels(
    readings: Sequence[Reading], mask_logits: Iterable[Floats | None], rules: RegionRules, cache: FilmCache
) -> list[Panel]:
    """Lay out films as panels.

    Parameters
    ----------
    readings : sequence of Reading
        The films to show.
    mask_logits : iterable of ndarray
        (S, S) map of each.
    rules : RegionRules
        How a map becomes regions.
    cache : FilmCache
        Where films and truth lie, of side S.

    Raises
    ------
    ValueError
        A map is missing.
    """
    panels = []
    for reading, logits in zip(readings, mask_logits, strict=True):
        if logits is None:
            raise ValueError(f"there is no map of {reading.film.image}; the triage profile shows none")
        inside = without_padding(logits, cache.content(reading.film))
        region = cache.region(reading.film)
        panels.append(
            Panel(
                film=cache.image(reading.film),
                mask_logits=inside,
                truth=None if region is None else region > 0,
                found=rules(inside),
                label=bool(reading.film.label),
                probability=reading.probability,
                flagged=reading.flagged,
                caption=_caption(reading),
            )
        )
    return panels


def write_report(
    path: Path,
    title: str,
    systems: Mapping[str, Sequence[Reading]],
    measured: Mapping[str, Plain],
    *,
    panels: Sequence[Panel] = (),
    notes: Sequence[str] = (),
    comparisons: Mapping[str, Plain] | None = None,
) -> None:
    """Write a report as one HTML file that loads nothing else; the same input gives the same bytes.

    Parameters
    ----------
    path : Path
        The file.
    title : str
        Its heading.
    systems : mapping of str to sequence of Reading
        Readings by name of a system, or of a set of films.
    measured : mapping of str to dict
        What `training.measure.measure` returned for each. Panels are grouped by the first operating point of the first.
    panels : sequence of Panel
        Films to show, as `choose_panels` chose them.
    notes : sequence of str
        Sentences for the first section.
    comparisons : mapping of str to dict or None
        What `training.measure.compare` returned, by label.

    Raises
    ------
    ValueError
        There is no system, or one without its measures, or with those of another number of films.
    """
    if not systems:
        raise ValueError("there is no system to report")
    for name, readings in systems.items():
        if name not in measured:
            raise ValueError(f"{name} was not measured")
        if measured[name]["films"]["films"] != len(readings):
            raise ValueError(f"{name}: {len(readings)} films were read, {measured[name]['films']['films']} measured")
    own = {name: measured[name] for name in systems}
    points = list(dict.fromkeys(point for each in own.values() for point in each["operating_points"]))
    sections = {
        "What was measured": _films(own, notes),
        "Classification": "".join(_classification(own, point) for point in points),
        "Paired comparisons": _comparisons(comparisons or {}),
        "ROC and precision-recall": _curves(systems, own, points),
        "Calibration": _calibration(systems, own),
        "Confusion matrices": _confusions(own, points),
        "Localization": _localization(own, points[0]),
        "Strata": _strata(own, points[0]),
        "Films": _panels(panels, points[0]),
    }
    shown = {name: body for name, body in sections.items() if body}
    links = "".join(f'<a href="#{_anchor(name)}">{name}</a>' for name in shown)
    body = "".join(f'<section id="{_anchor(name)}"><h2>{name}</h2>{part}</section>' for name, part in shown.items())
    heading = html.escape(title)
    page = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{heading}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n<body>'
        f'<header><h1>{heading}</h1><p class="statement">{STATEMENT}</p><nav>{links}</nav></header>\n'
        f'<main>{body}</main>\n<footer class="statement">{STATEMENT}</footer></body></html>\n'
    )
    path.write_text(page, encoding="utf-8")


# The sections


def _films(measured: Mapping[str, Plain], notes: Sequence[str]) -> str:
    """Count films, labels by source and patients; once where all systems read the same films."""
    counts = {name: each["films"] for name, each in measured.items()}
    if all(each == next(iter(counts.values())) for each in counts.values()):
        counts = {"n" if len(counts) == 1 else "n, every system": next(iter(counts.values()))}
    kinds = list(dict.fromkeys(kind for each in counts.values() for kind in each))
    rows = [(kind, *(str(each.get(kind, 0)) for each in counts.values())) for kind in kinds]
    said = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    return (
        f"{said}{_table(['films', *counts], rows, 'Films, labels by source and class, and patients.')}"
        '<p class="note">Intervals are 95 %, by a percentile bootstrap that draws patients; a film of an unknown '
        "patient counts as a patient of its own. n is the number of films that a value rests on. A film is flagged "
        "where its probability reaches the threshold of an operating point; one that is not flagged has not been "
        "cleared. A proportion of all films or of none has Wilson's interval.</p>"
    )


def _classification(measured: Mapping[str, Plain], point: str) -> str:
    """Return the deck's table at an operating point."""
    rows = []
    for name, each in measured.items():
        if point in each["operating_points"]:
            own = each["operating_points"][point]
            values = [own["accuracy"], own["precision"], own["sensitivity"]]
            values += [each["classification"]["auc"], each["localization"]["dice_mean_positives"]]
            rows.append((name, *map(_value, values)))
    caption = f"Operating point: {point}. AUC and Dice (regions on positives with a mask) do not depend on it."
    return _table(["system", "accuracy", "precision", "recall", "AUC", "Dice"], rows, caption)


def _comparisons(comparisons: Mapping[str, Plain]) -> str:
    """Return paired differences, or nothing where there are none."""
    if not comparisons:
        return ""
    rows = []
    for label, each in comparisons.items():
        p = each["auc_delong"]["p"]
        exact = f"{_value(each['auc_delong'])}<br>p {'&lt; 0.001' if p < 0.001 else f'= {p:.3f}'}"
        rows.append(
            (label, _value(each["auc"]), exact, _value(each["dice_mean_positives"]), _value(each["peak_in_region"]))
        )
    head = ["difference", "AUC, bootstrap over patients", "AUC, DeLong", "Dice on positives", "peak in region"]
    return _table(head, rows, "First less second, on the same films. DeLong counts every film as independent.")


def _curves(systems: Mapping[str, Sequence[Reading]], measured: Mapping[str, Plain], points: Sequence[str]) -> str:
    """Draw the ROC and precision-recall curves of all systems, with the operating points and their intervals."""
    data = {
        name: (labels_of([each.film for each in readings]), probabilities_of(readings))
        for name, readings in systems.items()
    }
    drawn = {name: pair for name, pair in data.items() if 0 < pair[0].sum() < pair[0].size}
    styles = dict(zip(systems, _styles(), strict=False))
    marks = dict(zip(points, itertools.cycle(MARKERS), strict=False))

    def paint_points(axes: Axes, x: str, y: str) -> None:
        for name, (point, marker) in itertools.product(drawn, marks.items()):
            own = measured[name]["operating_points"].get(point)
            if own is None or own[x]["value"] is None or own[y]["value"] is None:
                continue
            across, up = _errors(own[x]), _errors(own[y])
            colour = styles[name][0]
            # A false positive rate is what specificity leaves of 1: value and interval turn around.
            at = 1 - own[x]["value"] if x == "specificity" else own[x]["value"]
            across = across[::-1] if x == "specificity" else across
            bars = {"xerr": np.array([across]).T, "yerr": np.array([up]).T, "elinewidth": 0.8}
            axes.errorbar(at, own[y]["value"], **bars, fmt=marker, color=colour, ms=5.5, mec=_INK, mew=0.6, zorder=3)

    def paint_roc(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=_INK, lw=0.6, alpha=0.5)
        for name, (labels, scores) in drawn.items():
            axes.plot(*roc_points(labels, scores), color=styles[name][0], ls=(0, styles[name][1] or None), lw=1.6)
        paint_points(axes, "specificity", "sensitivity")

    def paint_recall(axes: Axes) -> None:
        for share in sorted({labels.mean() for labels, _ in drawn.values()}):
            axes.plot([0, 1], [share, share], color=_INK, lw=0.6, alpha=0.5)
        for name, (labels, scores) in drawn.items():
            line = {"color": styles[name][0], "ls": (0, styles[name][1] or None), "lw": 1.6}
            axes.plot(*precision_recall_points(labels, scores), **line, drawstyle="steps-pre")
        paint_points(axes, "sensitivity", "precision")

    rows = []
    for name, each in measured.items():
        key = f"{_swatch(*styles[name])} {html.escape(name)}"
        rows.append((key, *(_value(each["classification"][measure]) for measure in ("auc", "average_precision"))))
    legend = _table(["curve", "AUC", "average precision"], rows, "Curves and the areas under them.", escaped=True)
    shapes = ", ".join(f"{MARKERS[marker]} {html.escape(point)}" for point, marker in marks.items())
    return (
        '<div class="plots">'
        + _figure("roc", "1 − specificity", "sensitivity", paint_roc, "ROC curves; the diagonal is chance.")
        + _figure(
            "recall",
            "recall",
            "precision",
            paint_recall,
            "Precision-recall curves; a level line is the share of positives, which is chance.",
        )
        + f"</div>{legend}"
        + f'<p class="note">Operating points: {shapes}, with 95 % intervals. A point lies off its curve where '
        "thresholds or calibration were chosen fold by fold.</p>"
    )


def _calibration(systems: Mapping[str, Sequence[Reading]], measured: Mapping[str, Plain]) -> str:
    """Draw a reliability diagram for each system."""
    figures = []
    for index, (name, readings) in enumerate(systems.items()):
        bins = calibration_bins(labels_of([each.film for each in readings]), probabilities_of(readings))
        colour = COLOURS[index % len(COLOURS)]

        def paint(axes: Axes, bins: Bins = bins, colour: str = colour) -> None:
            intervals = [wilson(round(share * n), int(n)) for share, n in zip(bins.frequency, bins.count, strict=True)]
            bars = np.array([[each.value - each.low, each.high - each.value] for each in intervals]).T
            axes.plot([0, 1], [0, 1], color=_INK, lw=0.6, alpha=0.5)
            axes.plot(bins.probability, bins.frequency, color=colour, lw=0.8, alpha=0.6)
            axes.errorbar(bins.probability, bins.frequency, yerr=bars, fmt="o", color=colour, ms=4, elinewidth=0.8)

        own = measured[name]["classification"]
        caption = (
            f"<b>{html.escape(name)}</b><br>ECE {_value(own['ece'])}<br>Brier {_value(own['brier'])}<br>"
            f"{len(bins.count)} bins of {_span(bins.count)} films"
        )
        figures.append(_figure(f"calibration{index}", "probability", "frequency", paint, caption))
    return (
        f'<div class="plots">{"".join(figures)}</div><p class="note">Bins of equal mass: mean probability against the '
        "frequency of pneumothorax, with Wilson's 95 % intervals, which count films as independent.</p>"
    )


def _confusions(measured: Mapping[str, Plain], points: Sequence[str]) -> str:
    """Return the confusion matrices in the deck's form: rows truth, columns call."""
    tables = []
    for point, (name, each) in itertools.product(points, measured.items()):
        if point not in each["operating_points"]:
            continue
        own = each["operating_points"][point]
        counts = own["confusion"]
        rows = [
            ("negative", *_counts(counts, "true_negative", "false_positive"), _value(own["specificity"])),
            ("pneumothorax", *_counts(counts, "false_negative", "true_positive"), _value(own["sensitivity"])),
        ]
        head = ["truth", "not flagged", "flagged", "share called right"]
        tables.append(_table(head, rows, f"{name}, {point}, n {sum(counts.values())}"))
    return f'<div class="matrices">{"".join(tables)}</div>'


def _counts(counts: Mapping[str, int], *kinds: str) -> list[str]:
    """Return the cells of a row of a confusion matrix; the diagonal is set off."""
    return [f'<span class="{"hit" if kind.startswith("true") else "miss"}">{counts[kind]}</span>' for kind in kinds]


def _localization(measured: Mapping[str, Plain], point: str) -> str:
    """Return the measures of masks and regions, a row each."""
    keys = dict.fromkeys(key for each in measured.values() for key in each["localization"])
    rows = []
    for key in sorted(keys, key=lambda key: [*LOCALIZATION, key].index(key)):
        label = LOCALIZATION.get(key, key.replace("box_iou_above_", "A region's box and one of the truth: IoU > "))
        digits = 5 if key == "false_share_of_film_shown" else 3  # most negatives show nothing
        rows.append((label, *(_value(each["localization"].get(key), digits) for each in measured.values())))
    return _table(["measure", *measured], rows, f"Shown: what an integrator sees of films flagged at {point}.")


def _strata(measured: Mapping[str, Plain], point: str) -> str:
    """Return a table for each kind of stratum."""
    tables = []
    kinds = dict.fromkeys(kind for each in measured.values() for kind in each["strata"])
    for kind in kinds:
        rows = []
        for stratum in dict.fromkeys(name for each in measured.values() for name in each["strata"].get(kind, {})):
            for name, each in measured.items():
                own = each["strata"].get(kind, {}).get(stratum)
                if own is not None:
                    values = [_value(own.get(key)) for key in ("auc", "sensitivity", "specificity")]
                    system = [html.escape(name)] if len(measured) > 1 else []
                    rows.append((stratum, *system, str(own["n"]), str(own["positive"]), *values))
        if rows:
            head = [kind, *(["system"] if len(measured) > 1 else []), "films", "positive"]
            caption = f"Strata: {kind}. Sensitivity and specificity at {point}; AUC where both classes occur."
            tables.append(_table([*head, "AUC", "sensitivity", "specificity"], rows, caption))
    return "".join(tables)


def _panels(panels: Sequence[Panel], point: str) -> str:
    """Return the panels by outcome at an operating point, or nothing where there are none."""
    if not panels:
        return ""
    groups = []
    numbered = list(enumerate(panels))
    for outcome, heading in OUTCOMES.items():
        own = [(number, each) for number, each in numbered if (each.label, point in each.flagged) == outcome]
        if own:
            drawn = "".join(_panel(each, number) for number, each in own)
            groups.append(f"<h3>{heading} ({len(own)} shown)</h3>{drawn}")
    return (
        f'<p class="note">Outcomes at {html.escape(point)}. {CHOSEN} Each row: the film as the network saw it; the '
        f"film with {_swatch(TRUTH_COLOUR, ())} the ground truth and {_swatch(FOUND_COLOUR, (5, 2.5))} the regions "
        "found, drawn whether the film is flagged or not; the map, redder where a pixel is more probable.</p>"
        + "".join(groups)
    )


def _panel(panel: Panel, number: int) -> str:
    """Draw a panel; the film is stored once and used three times."""
    side = panel.film.shape[0]
    film = f'<image id="film{number}" width="{side}" height="{side}" href="{_png(panel.film)}"/>'
    again = f'<use href="#film{number}"/>'
    truth = "" if panel.truth is None else f'<path class="truth" d="{_outline(panel.truth)}"/>'
    found = f'<path class="found" d="{_outline(panel.found)}"/>'
    heat = f'<image width="{side}" height="{side}" href="{_heat(panel.mask_logits)}"/>'
    alternatives = {"film": film, "ground truth and regions": again + truth + found, "map": again + heat}
    drawn = "".join(
        f'<svg viewBox="0 0 {side} {side}" role="img" aria-label="{name}">{parts}</svg>'
        for name, parts in alternatives.items()
    )
    call = f"flagged at {', '.join(panel.flagged)}" if panel.flagged else "not flagged"
    text = f"<b>Probability {panel.probability:.3f}</b>, {html.escape(call)}. {html.escape(panel.caption)}"
    return f'<figure class="panel"><div>{drawn}</div><figcaption>{text}</figcaption></figure>'


# The parts they are made of


def _caption(reading: Reading) -> str:
    """Say which film it is and what its ground truth rests on."""
    film = reading.film
    outline = "mask" if film.has_mask else "box" if reading.truth is not None else "label alone"
    parts = [film.image, f"label by {film.labelled_by}"]
    parts += [f"ground truth: {outline}"] if film.label else []
    parts += [f"covers {reading.truth:.1%} of the film"] if reading.truth is not None else []
    parts += [f"Dice {reading.dice:.3f}"] if reading.dice is not None else []
    parts += [f"view {film.view}"] if film.view else []
    return "; ".join(parts)


def _value(measured: Plain | Sequence[float] | None, digits: int = 3) -> str:
    """Return a value with its interval and n; quartiles as such; a dash where it is not defined."""
    if not measured:
        return "–"
    if not isinstance(measured, Mapping):
        return " to ".join(f"{each:.{digits}f}" for each in measured)
    value, low, high = (measured[key] for key in ("value", "low", "high"))
    if value is None:
        return f'– <span class="ci">n {measured["n"]}</span>'
    between = "" if low is None or high is None else f"({low:.{digits}f} to {high:.{digits}f}) "
    return f'{value:.{digits}f} <span class="ci">{between}n {measured["n"]}</span>'


def _errors(measured: Plain) -> list[float]:
    """Return how far the interval reaches below and above the value."""
    ends = (measured["low"], measured["high"])
    return [0.0 if end is None else abs(end - measured["value"]) for end in ends]


def _span(counts: NDArray[np.intp]) -> str:
    """Return a number, or the least and the largest of several."""
    least, most = int(counts.min()), int(counts.max())
    return str(least) if least == most else f"{least} to {most}"


def _anchor(name: str) -> str:
    """Return the id of a section."""
    return name.lower().replace(" ", "-")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str, *, escaped: bool = False) -> str:
    """Return a table; head, caption and the first cell of each row are escaped here, the others are HTML already."""
    top = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head)
    lines = []
    for name, *cells in rows:
        first = name if escaped else html.escape(name)
        lines.append(f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>')
    return (
        f'<div class="wide"><table><caption>{html.escape(caption)}</caption><thead><tr>{top}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>\n"
    )


def _styles() -> Iterator[tuple[str, tuple[float, ...]]]:
    """Yield colours and dashes; both change from one system to the next, for paper without colour."""
    return zip(itertools.cycle(COLOURS), itertools.cycle(DASHES), strict=False)


def _swatch(colour: str, dashes: Sequence[float]) -> str:
    """Return a piece of a line, for a legend."""
    pattern = f' stroke-dasharray="{" ".join(str(1.6 * dash) for dash in dashes)}"' if dashes else ""
    line = f'<line x1="0" x2="30" y1="5" y2="5" stroke="{colour}" stroke-width="2.5"{pattern}/>'
    return f'<svg class="swatch" viewBox="0 0 30 10" aria-hidden="true">{line}</svg>'


def _figure(key: str, x: str, y: str, paint: Callable[[Axes], None], caption: str) -> str:
    """Draw unit axes as inline SVG; `caption` is HTML, and no text of the data enters the drawing."""
    import matplotlib
    from matplotlib.figure import Figure

    inked = ("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color", "text.color")
    settings = {"svg.hashsalt": key, "svg.fonttype": "path", "font.size": 9, "axes.linewidth": 0.6, "grid.alpha": 0.15}
    with matplotlib.rc_context({**settings, **dict.fromkeys(inked, _INK)}):
        figure = Figure(figsize=(4, 4), layout="constrained")
        axes = figure.add_subplot(aspect="equal", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=x, ylabel=y)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(visible=True)
        paint(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', rf'<svg \1 role="img" aria-label="{y} over {x}">', drawing)
    # Several drawings share the page: each keeps its ids to itself.
    drawing = re.sub(r'(\bid="|\bhref="#|url\(#)', rf"\g<1>{key}-", drawing.replace("xlink:href", "href"))
    drawing = re.sub(r"\n\s*", "\n", drawing).replace(_INK, "currentColor")
    return f'<figure class="plot">{drawing}<figcaption>{caption}</figcaption></figure>'


def _outline(mask: Flags) -> str:
    """Return the outlines of a mask (S, S), holes included, as SVG path data in its pixels."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    # OpenCV's points are pixels; in the drawing a pixel's centre lies half a unit in.
    return " ".join(
        "M" + "L".join(f"{x + 0.5:g} {y + 0.5:g}" for x, y in contour.reshape(-1, 2)) + "Z" for contour in contours
    )


def _heat(mask_logits: Floats) -> str:
    """Return a map (S, S) as a red layer that is more opaque where the probability is higher."""
    side = min(HEAT_SIDE, mask_logits.shape[0])
    small = cv2.resize(sigmoid(mask_logits).astype(np.float32), (side, side), interpolation=cv2.INTER_AREA)
    layer = np.empty((side, side, 4), np.uint8)
    layer[..., :3] = HEAT_BGR
    layer[..., 3] = np.rint(small * 200)
    return _png(layer)


def _png(pixels: NDArray[np.uint8]) -> str:
    """Return pixels as a data URL of a PNG."""
    _, encoded = cv2.imencode(".png", np.ascontiguousarray(pixels), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    return f"data:image/png;base64,{base64.b64encode(encoded.tobytes()).decode()}"


STYLE = f"""
:root {{ color-scheme: light dark; --paper: #fff; --ink: #1c2024; --soft: #5b6670; --line: #d5dade }}
@media (prefers-color-scheme: dark) {{
  :root {{ --paper: #14171a; --ink: #e3e7ea; --soft: #9aa5ae; --line: #363d44 }}
}}
body {{ max-width: 70rem; margin: 0 auto; padding: 1.5rem; background: var(--paper); color: var(--ink);
  font: 15px/1.45 system-ui, sans-serif }}
h1 {{ font-size: 1.6rem; margin: 0 0 .3rem }} h2 {{ font-size: 1.2rem; margin: 2.2rem 0 .6rem;
  border-bottom: 1px solid var(--line); padding-bottom: .2rem }} h3 {{ font-size: 1rem; margin: 1.4rem 0 .4rem }}
.statement {{ border-left: 4px solid #d55e00; padding: .2rem .7rem; margin: .6rem 0; font-weight: 600 }}
nav a {{ margin-right: 1rem; color: inherit }} footer {{ margin-top: 2.5rem }}
.note, caption, .ci {{ color: var(--soft) }} .note {{ font-size: .9rem }}
.wide {{ overflow-x: auto; margin: .7rem 0 1.3rem }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem }}
caption {{ text-align: left; padding-bottom: .3rem }}
th, td {{ text-align: left; vertical-align: top; padding: .3rem 1rem .3rem 0; border-bottom: 1px solid var(--line) }}
th {{ font-weight: 600; overflow-wrap: anywhere; min-width: 4rem }} tbody th {{ font-weight: 400; max-width: 22rem }}
.ci {{ display: block; font-size: .82em; white-space: nowrap }} figcaption .ci {{ display: inline; font-size: inherit }}
.plots, .matrices {{ display: flex; flex-wrap: wrap; gap: 1rem 2rem }} .matrices .wide {{ margin: 0 }}
.hit {{ font-weight: 600 }} .miss {{ color: #d55e00 }} .matrices span.hit, .matrices span.miss {{ font-size: 1.15em }}
figure {{ margin: 0 }} figcaption {{ font-size: .88rem }}
.plot {{ flex: 0 1 24rem; min-width: 16rem }} .plot svg {{ width: 100%; height: auto }}
.plot svg * {{ stroke-linejoin: round; stroke-linecap: butt }}
.swatch {{ width: 30px; height: 10px }}
.panel {{ margin: 0 0 1.1rem; break-inside: avoid }}
.panel div {{ display: grid; grid-template-columns: repeat(3, 1fr); gap: .3rem; background: #000; max-width: 62rem }}
.panel svg {{ display: block; width: 100%; height: auto }} .panel figcaption {{ overflow-wrap: anywhere }}
.truth, .found {{ fill: none; stroke-width: 1.6; stroke-linejoin: round; stroke-linecap: round;
  vector-effect: non-scaling-stroke }}
.truth {{ stroke: {TRUTH_COLOUR} }} .found {{ stroke: {FOUND_COLOUR}; stroke-dasharray: 5 3 }}
@page {{ margin: 14mm }}
@media print {{
  :root {{ --paper: #fff; --ink: #000; --soft: #444; --line: #bbb }}
  body {{ max-width: none; padding: 0; font-size: 9pt; print-color-adjust: exact }} nav {{ display: none }}
  .wide {{ overflow: visible }} .plot, tr {{ break-inside: avoid }} h2, h3 {{ break-after: avoid }}
}}
"""
