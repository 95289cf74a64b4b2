"""What a system said of each film, held against the truth: one row of numbers a film."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from training.choices import Choices
from training.data.cache import FilmCache
from training.data.films import Film
from training.metrics import Flags, Floats, dice
from training.predictions import Predictions, without_padding
from training.scoring import RegionRules

if TYPE_CHECKING:
    from ptxsdk import Detector


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One film as a system read it.

    Attributes
    ----------
    film : Film
        The film, with its label.
    probability : float
        Calibrated probability.
    flagged : tuple of str
        Operating points whose threshold it reaches.
    found : float
        Share of the film the regions cover, flagged or not.
    regions : int
        Number of regions, flagged or not.
    truth : float or None
        Share of the film the finding covers, where a mask or boxes tell.
    dice : float or None
        Of regions and mask, where there is a mask.
    peak_hits : bool or None
        Whether the map's largest logit lies inside the mask or the boxes.
    box_iou : float or None
        Largest intersection over union of a region's box and a box of the truth.
    """

    film: Film
    probability: float
    flagged: tuple[str, ...]
    found: float
    regions: int
    truth: float | None = None
    dice: float | None = None
    peak_hits: bool | None = None
    box_iou: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers that are known, with the film's path and label in place of the film."""
        plain = asdict(self) | {"film": self.film.image, "label": self.film.label, "source": self.film.labelled_by}
        return {key: value for key, value in plain.items() if value is not None}

    @classmethod
    def from_dict(cls, plain: dict[str, Any], films: Mapping[str, Film]) -> Reading:
        """Read back what `to_dict` wrote, given the films by their paths."""
        own = {key: value for key, value in plain.items() if key not in {"film", "label", "source", "flagged"}}
        return cls(film=films[plain["film"]], flagged=tuple(plain["flagged"]), **own)


def read_predictions(
    predictions: Predictions, choices: Choices, cache: FilmCache, films: Sequence[Film]
) -> list[Reading]:
    """Read films from stored logits with choices already made."""
    probabilities = choices.probabilities(predictions)
    return [
        _reading(film, cache, float(probability), mask, choices.regions, _thresholds(choices))
        for film, probability, mask in zip(films, probabilities, predictions.mask_logits, strict=True)
    ]


def read_engine(detector: Detector, data: Path, cache: FilmCache, films: Sequence[Film]) -> Iterator[Reading]:
    """Read films through the SDK: from the stored file to what an integrator gets.

    Parameters
    ----------
    detector : Detector
        With the profile ``cade``, which shows the map.
    data : Path
        Folder the films' paths start from.
    cache : FilmCache
        Of the engine's input size; the truth is taken from it.
    films : sequence of Film
        Films to read.

    Yields
    ------
    Reading
        One a film, in order.

    Raises
    ------
    ptxsdk.OutOfScope
        The gate refuses a film.
    """
    manifest = detector.engine.manifest
    rules = RegionRules.of(manifest)
    thresholds = {point.name: point.threshold for point in manifest.operating_points}
    for film in films:
        detection = detector.predict(data / film.image)
        if detection.mask_logits is None:
            raise ValueError("the triage profile shows no map")
        mask = without_padding(detection.mask_logits, detection.geometry.content)
        yield _reading(film, cache, detection.probability, mask, rules, thresholds)


def _thresholds(choices: Choices) -> dict[str, float]:
    """Return the thresholds by name."""
    return {point.name: point.threshold for point in choices.operating_points}


def _reading(
    film: Film,
    cache: FilmCache,
    probability: float,
    mask_logits: Floats,
    rules: RegionRules,
    thresholds: dict[str, float],
) -> Reading:
    """Hold one film's map against its truth."""
    found = rules(mask_logits)
    boxes = _boxes(found)
    x0, y0, x1, y1 = cache.content(film)
    area = (x1 - x0) * (y1 - y0)
    region = cache.region(film)
    located: dict[str, Any] = {}
    if region is not None:
        truth = region > 0
        located = {
            "truth": float(truth.sum() / area),
            "dice": dice(found, truth) if film.has_mask else None,
            "peak_hits": bool(truth.flat[int(mask_logits.argmax())]),
            "box_iou": max((_iou(one, other) for one in boxes for other in _boxes(truth)), default=0.0),
        }
    return Reading(
        film=film,
        probability=probability,
        flagged=tuple(name for name, threshold in thresholds.items() if probability >= threshold),
        found=float(found.sum() / area),
        regions=len(boxes),
        **located,
    )


def _boxes(mask: Flags) -> list[tuple[int, int, int, int]]:
    """Return the bounding box ``(x0, y0, x1, y1)`` of every 8-connected part of a mask (S, S)."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    return [(int(x), int(y), int(x + width), int(y + height)) for x, y, width, height, _ in stats[1:]]


def _iou(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> float:
    """Return the intersection over union of two boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0, width) * max(0, height)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / (sum(areas) - shared)
