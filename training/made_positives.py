"""Make a pneumothorax, with its exact mask, on a film that has none: more positives where masks are scarce.

What is imitated is what a film of a pneumothorax shows: the visceral pleura, a thin bright line that runs with the
chest wall at a distance and was drawn in towards the hilum; no vessels beyond it; and a darker field there, for air has
taken the place of lung (O'Connor and Morgan, BMJ 2005;330:1493; MacDuff et al., Thorax 2010;65 Suppl 2:ii18). On erect
films the air gathers at the apex, on supine ones at the base and in the costophrenic sulcus (Gordon, Radiology
1980;136:25). Only for training: nothing made here may be evaluated on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.uint8]
Field = NDArray[np.float32]
Range = tuple[float, float]
Kind = Literal["apical", "lateral", "large", "basal"]

_ANGLES = 720
_DEGREE = np.arange(_ANGLES, dtype=np.float32) * (360 / _ANGLES) - 180


@dataclass(frozen=True, kw_only=True)
class Appearance:
    """Ranges a made pneumothorax is drawn from; lengths are shares of the film's side S, angles in degrees.

    Angles are those of rays from the hilum: 0 is up, 90 towards the chest wall, 180 down.

    Attributes
    ----------
    apical, lateral, large, basal : float
        Relative frequency of each kind.
    apical_depth, lateral_depth, basal_depth : tuple of float
        Greatest distance between chest wall and pleural line; drawn log-uniformly, so that small ones prevail.
    collapse : tuple of float
        Share of the way to the hilum that the line of a large one has gone.
    apical_reach : tuple of float
        How far below the apex, along the chest wall, an apical one ends.
    waviness : float
        Relative deviation of the depth from its smooth course.
    darkening : tuple of float
        Share of the grey lost where a whole lung's thickness of air stands for lung; less on a film of low contrast.
    full_thickness : float
        Distance from the chest wall at which the lung has about its whole thickness.
    brightening : tuple of float
        Share of the grey that a lung gains at complete collapse.
    line_grey : tuple of float
        Contrast of the pleural line, in standard deviations of the lung's detail.
    line_width : tuple of float
        Standard deviation across the line; 0.0012 is 0.6 pixels at 512.
    texture_kept : tuple of float
        Share of the fine detail left outside the line.
    least_area : float
        Smallest mask, share of the film.
    """

    apical: float = 0.56
    lateral: float = 0.2
    large: float = 0.14
    basal: float = 0.1
    apical_depth: Range = (0.013, 0.12)
    lateral_depth: Range = (0.013, 0.07)
    basal_depth: Range = (0.02, 0.08)
    collapse: Range = (0.25, 0.75)
    apical_reach: Range = (35.0, 90.0)
    waviness: float = 0.08
    darkening: Range = (0.06, 0.24)
    full_thickness: float = 0.07
    brightening: Range = (0.02, 0.2)
    line_grey: Range = (0.8, 2.6)
    line_width: Range = (0.0009, 0.0018)
    texture_kept: Range = (0.0, 0.3)
    least_area: float = 0.0012


class _Lung(NamedTuple):
    """One lung, cut out of its film: planes of shape (h, w)."""

    where: tuple[slice, slice]
    inside: NDArray[np.bool_]
    wall: Field  # distance to the outline, pixels
    radius: Field  # distance to the hilum, pixels
    bearing: NDArray[np.int32]  # index of the ray
    reach: Field  # (720,) distance from the hilum to the outline, pixels


def make_positive(
    image: Plane, lungs: Plane, rng: np.random.Generator, appearance: Appearance | None = None
) -> tuple[Plane, Plane] | None:
    """Return a copy of a film with a made pneumothorax, and its mask.

    Parameters
    ----------
    image : ndarray
        (S, S) uint8; a preprocessed film without pneumothorax.
    lungs : ndarray
        (S, S) uint8; 1 and 2 inside the two lungs, as `training.lungs.predict_lungs` outlines them.
    rng : numpy.random.Generator
        Source of every draw.
    appearance : Appearance, optional
        Ranges of the draws.

    Returns
    -------
    tuple of ndarray or None
        The film and the mask, both (S, S) uint8, the mask 1 between chest wall and pleural line; None where the
        outline does not serve. No pixel outside the chosen lung is changed.
    """
    appearance = appearance or Appearance()
    present = [value for value in (1, 2) if (lungs == value).any()]
    if not present:
        return None
    chosen = present[rng.integers(len(present))]
    lung = _cut_out(lungs == chosen, lateral=-1 if chosen == 1 else 1)
    if lung is None:
        return None
    side = image.shape[0]
    film = image[lung.where].astype(np.float32)
    kind = _draw_kind(appearance, rng)
    pleura = _draw_pleura(kind, lung, side, appearance, rng)
    beyond = lung.radius - cv2.GaussianBlur(pleura[None], (0, 0), 6)[0][lung.bearing]  # positive outside the line
    middle = _mediastinum(lung, film, side)
    outside = _largest(_open(lung.inside & (beyond > 0) & (middle < 0.5), side / 384))
    if outside.sum() < appearance.least_area * side**2 or outside.sum() > 0.9 * lung.inside.sum():
        return None
    shown = _paint(film, lung, outside, beyond, middle, pleura, side, appearance, rng)
    made, mask = image.copy(), np.zeros_like(image)
    made[lung.where][lung.inside] = np.clip(np.rint(shown), 0, 255).astype(np.uint8)[lung.inside]
    mask[lung.where] = outside
    return made, mask


def _cut_out(inside: NDArray[np.bool_], *, lateral: int) -> _Lung | None:
    """Cut one lung out of (S, S) and lay rays from its hilum; `lateral` is the sign of x towards its chest wall."""
    side = len(inside)
    margin = side // 48
    x, y, width, height = cv2.boundingRect(inside.astype(np.uint8))
    if height < 0.2 * side or width < 0.1 * side:
        return None
    top, left = max(y - margin, 0), max(x - margin, 0)
    where = (slice(top, y + height + margin), slice(left, x + width + margin))
    inside = inside[where]
    padded = cv2.copyMakeBorder(inside.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT)
    wall = cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1]
    medial = x if lateral > 0 else x + width - 1
    hilum_x, hilum_y = medial + lateral * 0.3 * width - left, y + 0.5 * height - top
    rows, columns = np.mgrid[: inside.shape[0], : inside.shape[1]].astype(np.float32)
    radius, degree = cv2.cartToPolar(hilum_y - rows, lateral * (columns - hilum_x), angleInDegrees=True)
    bearing = np.rint((degree + 180) * (_ANGLES / 360)).astype(np.int32) % _ANGLES
    reach = np.zeros(_ANGLES, np.float32)
    np.maximum.at(reach, bearing[inside], radius[inside])
    reach = cv2.GaussianBlur(cv2.dilate(reach[None], np.ones((1, 5))), (0, 0), 3, borderType=cv2.BORDER_REFLECT)[0]
    return _Lung(where, inside, wall, radius, bearing, reach)


def _largest(plane: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the largest connected part of a plane."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(plane.astype(np.uint8), connectivity=4)
    return labels == 1 + np.argmax(stats[1:, cv2.CC_STAT_AREA]) if count > 1 else plane


def _open(plane: NDArray[np.bool_], radius: float) -> NDArray[np.bool_]:
    """Return a plane without what is narrower than a disc, as a morphological opening leaves it."""
    size = 2 * round(radius) + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    return cv2.morphologyEx(plane.astype(np.uint8), cv2.MORPH_OPEN, disc) > 0


def _draw_kind(appearance: Appearance, rng: np.random.Generator) -> Kind:
    """Draw the kind of pneumothorax."""
    kinds: tuple[Kind, ...] = ("apical", "lateral", "large", "basal")
    rates = np.array([getattr(appearance, kind) for kind in kinds])
    return kinds[rng.choice(len(kinds), p=rates / rates.sum())]


def _draw_pleura(kind: Kind, lung: _Lung, side: int, appearance: Appearance, rng: np.random.Generator) -> Field:
    """Return the distance of the pleural line from the hilum along each ray, (720,) float32."""
    height = lung.reach * np.cos(np.deg2rad(_DEGREE))
    unit = min(side, 2 * len(lung.inside))  # small lungs, small depths
    apex = float(_DEGREE[np.argmax(height)])
    low = (_DEGREE > 110) & (_DEGREE < 175)
    sulcus = float(_DEGREE[low][np.argmax(lung.reach[low])])
    # a lung that lets go of its corners is round
    corner = np.maximum(lung.reach - cv2.GaussianBlur(lung.reach[None], (0, 0), 30)[0], 0)
    if kind == "apical":
        end = apex + rng.uniform(*appearance.apical_reach)
        course = _course(apex - rng.uniform(12, 40), apex - rng.uniform(-5, 8), apex + rng.uniform(0, 20), end)
        depth = unit * _log_uniform(rng, appearance.apical_depth)
    elif kind == "lateral":
        begin, end = apex - rng.uniform(0, 35), rng.uniform(100, sulcus + 10)
        course = _course(begin, begin + rng.uniform(20, 60), end - rng.uniform(20, 50), end)
        depth = unit * _log_uniform(rng, appearance.lateral_depth)
    elif kind == "large":
        course = _course(apex - 50, apex - rng.uniform(0, 20), sulcus - rng.uniform(0, 40), sulcus + 30)
        depth = corner + rng.uniform(*appearance.collapse) * (lung.reach - corner)
    else:
        begin = sulcus - rng.uniform(40, 80)
        course = _course(begin, sulcus - rng.uniform(5, 20), sulcus + rng.uniform(0, 8), sulcus + rng.uniform(15, 30))
        depth = 0.7 * corner + unit * _log_uniform(rng, appearance.basal_depth)
    depth = depth * course * (1 + appearance.waviness * _smooth_noise(rng, 40))
    clear = np.maximum(0.012 * side - depth, 0)  # where the pleura touches the wall the line lies beyond it
    return (lung.reach - depth + clear).astype(np.float32)


def _mediastinum(lung: _Lung, film: Field, side: int) -> Field:
    """Return where an outline covers heart or great vessels, (h, w) float32 from 0 to 1: air does not cross them."""
    step = max(1, side // 96)  # they are large: a coarse look is enough
    smooth = cv2.GaussianBlur(film, (0, 0), side / 96)[::step, ::step]
    inside, bearing, radius = (plane[::step, ::step] for plane in (lung.inside, lung.bearing, lung.radius))
    middle, bright = np.percentile(smooth[inside], (45, 97))
    if bright - middle < 25:
        return np.zeros_like(film)
    dense = inside & (smooth > middle + 0.45 * (bright - middle))
    degree = _DEGREE[bearing]
    heart = _largest(_open(dense & (np.abs(degree) > 70), 0.035 * side / step))  # above, what is dense is bone
    if heart.any() and radius[heart].min() > 0.12 * side:  # a mass, or a device
        heart[:] = False
    medial = _open(dense & (degree < -20) & (degree > -120), 0.015 * side / step)
    limit = np.full(_ANGLES, np.inf, np.float32)
    np.minimum.at(limit, bearing[medial], radius[medial])
    medial = inside & (radius >= cv2.erode(limit[None], np.ones((1, 9)))[0][bearing])  # and all that lies behind
    covered = cv2.resize((heart | medial).astype(np.float32), film.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return cv2.GaussianBlur(covered, (0, 0), side / 96)


def _paint(
    film: Field,
    lung: _Lung,
    outside: NDArray[np.bool_],
    beyond: Field,
    middle: Field,
    pleura: Field,
    side: int,
    appearance: Appearance,
    rng: np.random.Generator,
) -> Field:
    """Return the (h, w) film with air outside the line, a denser lung inside it, and the line."""
    base, noise, spread = _without_vessels(film, lung, side)
    reach = 2 * round(0.012 * side) + 1
    near = cv2.dilate(outside.astype(np.float32), np.ones((reach, reach))) * (1 - middle)
    edge = np.clip(beyond + 0.5, 0, 1) * near  # anti-aliased at the line
    soft = np.clip(lung.wall / (0.012 * side), 0, 1)  # an outline is never exact to the pixel
    air = edge * soft
    kept = rng.uniform(*appearance.texture_kept)
    shown = film + air * (base + noise + kept * (film - base - noise) - film)

    dark, middling, bright = np.percentile(film[lung.inside][::7], (5, 50, 95))
    contrast = min(1.0, 1.3 * (bright - dark) / max(middling, 1))  # on a washed-out film air is pale as well
    # at the wall there was little lung to miss: its thickness grows from there as a circle's chord does
    missing = np.sqrt(np.clip(lung.wall / (appearance.full_thickness * side), 0, 1))
    shown *= 1 - contrast * rng.uniform(*appearance.darkening) * missing * air
    collapse = outside.sum() / lung.inside.sum()
    thick = np.clip(lung.wall / (0.06 * side), 0, 1) * (1 - edge)
    shown *= 1 + contrast * rng.uniform(*appearance.brightening) * collapse * thick

    depth = np.clip((lung.reach - pleura) / (0.01 * side), 0, 1)
    fading = depth * np.clip(0.75 + 0.45 * _smooth_noise(rng, 25), 0.1, 1.3)
    width = max(0.55, rng.uniform(*appearance.line_width) * side)
    line = np.exp(-0.5 * ((beyond + width) / width) ** 2) * fading[lung.bearing].astype(np.float32)
    return shown + rng.uniform(*appearance.line_grey) * spread * line * soft * near


def _without_vessels(film: Field, lung: _Lung, side: int) -> tuple[Field, Field, float]:
    """Return the (h, w) film without the lung's fine structure, its noise, and the spread of that structure.

    Vessels are bright and narrower than ribs, which an opening tells apart; what is left of low contrast goes with a
    guided filter (He et al., TPAMI 2013;35:1397), which keeps the edges of ribs.
    """
    calm = cv2.GaussianBlur(film, (0, 0), 0.7)
    size = 2 * round(0.0065 * side) + 1
    opened = cv2.morphologyEx(calm, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size)))
    opened = cv2.GaussianBlur(opened, (0, 0), 0.004 * side)
    deep = np.clip(lung.wall / (0.05 * side) - 0.4, 0, 1)  # vessels at the wall are too fine to matter
    bright = np.maximum(calm - opened, 0)
    usual = 3 * float(np.median(bright[lung.inside])) + 1
    guide = calm - deep * bright * np.clip(2 - bright / usual, 0, 1)  # tubes and wires stand out more, and stay

    box = (2 * round(0.009 * side) + 1,) * 2
    mean = cv2.blur(guide, box)
    variance = cv2.blur(guide * guide, box) - mean * mean
    level = float(np.median(variance[lung.inside]))
    gain = variance / (variance + 2 * level + 1e-3)
    base = cv2.blur(gain, box) * guide + cv2.blur((1 - gain) * mean, box)
    noise = film - calm
    limit = 2.5 * float(np.median(np.abs(noise[lung.inside]))) + 0.5
    return base, np.clip(noise, -limit, limit), max(4.0, np.sqrt(level))


def _course(begin: float, rise: float, fall: float, end: float) -> Field:
    """Return a course over the rays, (720,): 0 up to `begin`, smoothly 1 from `rise` to `fall`, 0 from `end`."""
    up = np.clip((_DEGREE - begin) / max(rise - begin, 1), 0, 1)
    down = np.clip((end - _DEGREE) / max(end - fall, 1), 0, 1)
    share = np.minimum(up, down)
    return np.sin(share * (np.pi / 2)).astype(np.float32)


def _smooth_noise(rng: np.random.Generator, period: float) -> Field:
    """Return noise of unit scale over the rays, (720,) float32, that varies over about `period` degrees."""
    knots = rng.uniform(-1, 1, round(360 / period) + 1)
    noise = np.interp(_DEGREE, np.linspace(-180, 180, len(knots)), knots)
    return cv2.GaussianBlur(noise.astype(np.float32)[None], (0, 0), period * _ANGLES / 360 / 4)[0]


def _log_uniform(rng: np.random.Generator, bounds: Range) -> float:
    """Draw from a range, every factor as likely as any other."""
    return float(np.exp(rng.uniform(*np.log(bounds))))
