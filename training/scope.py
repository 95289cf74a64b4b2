"""Train and measure the gate's scope model: whether a small picture is a frontal chest, which way up, and positive.

Films are the positives, turned and inverted as well; what is no chest is pictures of other things, drawings, noise, and
films cut, shuffled or tilted out of shape.  Everything is split by patient, pictures by the series they come from.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ptxsdk import GatePolicy, gate
from ptxsdk.gate.scope import TURNS, ScopeModel, features, save_model
from ptxsdk.geometry import Geometry
from training.data.cache import sdk_preprocess
from training.data.films import Film
from training.data.folders import read_films

logger = logging.getLogger(__name__)

Picture = NDArray[np.float32]
Rng = np.random.Generator

NETWORK_SIDE = 384
OTHER = 2 * len(TURNS)
"""The class of what is no frontal chest, behind the turned and the turned inverted films."""


# --- pictures ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shown:
    """A picture as the network would see it: 8-bit display values, the longer side `NETWORK_SIDE`."""

    name: str
    group: str
    kind: str
    pixels: NDArray[np.uint8]


def prepare(name: str, group: str, kind: str, pixels: NDArray[np.uint8], side: int = NETWORK_SIDE) -> Shown:
    """Preprocess 8-bit pixels as the device does."""
    tensor, (x0, y0, x1, y1) = sdk_preprocess(pixels, side)
    return Shown(name, group, kind, np.rint(255 * tensor[y0:y1, x0:x1]).astype(np.uint8))


def read_shown_films(data: Path, films: Sequence[Film]) -> list[Shown]:
    """Read and preprocess films; the group of one without a patient id is its own name."""

    def one(film: Film) -> Shown:
        pixels = cv2.imread(str(data / film.image), cv2.IMREAD_GRAYSCALE)
        if pixels is None:
            raise ValueError(f"{film.image} cannot be read")
        return prepare(film.image, film.patient or film.image, "trusted" if film.trusted else "untrusted", pixels)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, films))


def read_pictures(folder: Path) -> list[Shown]:
    """Read pictures that show no chest; the kind is the name of the sub-folder, the group the name up to a digit."""
    found = []
    for path in sorted(folder.glob("*/*")):
        pixels = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        if pixels is not None and np.ptp(pixels) > 8:
            series = re.match(r"\D*", path.stem)
            group = series[0] if series and len(series[0]) > 2 else path.stem
            found.append(prepare(path.name, group, path.parent.name, pixels))
    if not found:
        raise ValueError(f"{folder.name} holds no pictures in sub-folders")
    return found


def small(pixels: NDArray[np.uint8]) -> Picture:
    """Return what `ptxsdk.gate.sample` makes of a preprocessed film."""
    rows, columns = pixels.shape
    tensor = pixels.astype(np.float32) / 255
    geometry = Geometry(source=(rows, columns), target=(rows, columns), content=(0, 0, columns, rows))
    return gate.sample(tensor, geometry, 0.0, 1.0)


def vary(pixels: NDArray[np.uint8], rng: Rng, *, window: tuple[float, float] = (0.9, 1.15), turn: float = 8) -> Picture:
    """Return a small picture of a random part of a film, a little turned, mirrored, and of another tone.

    Parameters
    ----------
    pixels : ndarray, shape (rows, columns), uint8
        The preprocessed film.
    rng : Generator
        Draws.
    window : tuple of float
        Least and largest share of each side that is kept; above 1 there are black borders.
    turn : float
        Largest turn in degrees.
    """
    rows, columns = pixels.shape
    shares = rng.uniform(*window) * rng.uniform(0.92, 1.08, 2)
    longest = rng.uniform(60, 80)
    height, width = (max(24, round(longest * part)) for part in shares * (rows, columns) / max(rows, columns))
    room = np.abs(1 - shares) / 2
    middle_y, middle_x = (0.5 + rng.uniform(-1, 1, 2) * room + rng.normal(0, 0.02, 2)) * (rows, columns)
    # From a pixel of the small picture to the place in the film.
    angle = np.deg2rad(rng.uniform(-turn, turn))
    turned = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = turned * (columns * shares[1] / width, rows * shares[0] / height)
    shift = (middle_x, middle_y) - linear @ (width / 2, height / 2)
    shown = cv2.warpAffine(
        pixels,
        np.column_stack([linear, shift]),
        (width, height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT if rng.random() < 0.7 else cv2.BORDER_REPLICATE,
    )
    return tone(shown.astype(np.float32) / 255, rng)


def tone(shown: Picture, rng: Rng) -> Picture:
    """Mirror at random, and change gamma, window, sharpness, noise and borders."""
    if rng.random() < 0.5:
        shown = shown[:, ::-1]
    shown = shown ** np.float32(np.exp(rng.normal(0, 0.3)))
    gain = rng.uniform(0.6, 1.3)
    shown = np.clip((shown - 0.5) * gain + 0.5 + rng.normal(0, 0.08), 0, 1)
    if rng.random() < 0.25:
        shown = cv2.GaussianBlur(shown, (0, 0), rng.uniform(0.4, 2.5))
    if rng.random() < 0.3:
        shown = shown + rng.normal(0, rng.uniform(0.005, 0.06), shown.shape)
    if rng.random() < 0.3:
        shown = _with_border(shown, rng)
    return np.ascontiguousarray(np.clip(shown, 0, 1), np.float32)


def _with_border(shown: Picture, rng: Rng) -> Picture:
    """Cover up to an eighth of some sides, as collimation does."""
    framed = np.array(shown)
    value = 0.0 if rng.random() < 0.8 else 1.0
    for side in range(4):
        if rng.random() < 0.5:
            edge = np.rot90(framed, side)  # a view
            edge[: int(rng.uniform(0, 0.125) * len(edge))] = value
    return framed


def pose(shown: Picture, label: int) -> Picture:
    """Turn a picture, and invert it, as the class `label` says."""
    turned = np.rot90(shown, label % len(TURNS))
    return np.ascontiguousarray(1 - turned if label >= len(TURNS) else turned)


# --- what is no chest -------------------------------------------------------------------------------------------------

Maker = Callable[[Sequence[Shown], Rng], Picture]


def _draw(films: Sequence[Shown], rng: Rng) -> NDArray[np.uint8]:
    return films[rng.integers(len(films))].pixels


def cut(films: Sequence[Shown], rng: Rng) -> Picture:
    """Cut a fifth to half of each side out of a film."""
    return vary(_draw(films, rng), rng, window=(0.2, 0.5))


def tiles(films: Sequence[Shown], rng: Rng) -> Picture:
    """Shuffle the tiles of a film, or put several films on one sheet."""
    count = int(rng.integers(2, 5))
    if rng.random() < 0.4:
        rows, columns = [(1, 2), (2, 1), (2, 2), (2, 3), (3, 3)][rng.integers(5)]
        sheet = [
            [cv2.resize(_draw(films, rng), (96, 96), interpolation=cv2.INTER_AREA) for _ in range(columns)]
            for _ in range(rows)
        ]
        return vary(np.vstack([np.hstack(line) for line in sheet]), rng)
    film = cv2.resize(_draw(films, rng), (24 * count, 24 * count), interpolation=cv2.INTER_AREA)
    parts = film.reshape(count, 24, count, 24).transpose(0, 2, 1, 3).reshape(-1, 24, 24)
    order = rng.permutation(len(parts))
    while (order == np.arange(len(parts))).mean() > 0.3:
        order = rng.permutation(len(parts))
    parts = parts[order].reshape(count, count, 24, 24).transpose(0, 2, 1, 3)
    return tone(np.ascontiguousarray(parts.reshape(24 * count, -1)).astype(np.float32) / 255, rng)


def tilted(films: Sequence[Shown], rng: Rng) -> Picture:
    """Turn a film by 35 to 55 degrees, from any side."""
    shown = vary(_draw(films, rng), rng, turn=0).astype(np.float32)
    rows, columns = shown.shape
    matrix = cv2.getRotationMatrix2D((columns / 2, rows / 2), float(rng.uniform(35, 55) + 90 * rng.integers(4)), 0.85)
    return cv2.warpAffine(shown, matrix, (columns, rows))


def noise(films: Sequence[Shown], rng: Rng) -> Picture:
    """Draw noise of a random spectrum."""
    rows, columns = rng.integers(56, 80, 2)
    frequency = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(columns)[None]) + 0.5 / max(rows, columns)
    spectrum = np.fft.rfft2(rng.normal(size=(rows, columns))) * frequency ** -rng.uniform(0, 2.5)
    values = np.fft.irfft2(spectrum, (rows, columns))
    low, high = np.percentile(values, (2, 98))
    return np.clip((values - low) / (high - low), 0, 1).astype(np.float32)


def gradient(films: Sequence[Shown], rng: Rng) -> Picture:
    """Draw a ramp, a bowl or a step wedge."""
    rows, columns = (int(side) for side in rng.integers(56, 80, 2))
    y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    along = np.cos(angle) * x + np.sin(angle) * y
    values = [along, np.hypot(x - rng.normal(0, 0.4), y - rng.normal(0, 0.4)), np.round(along * 5) / 5][rng.integers(3)]
    values = (values - values.min()) / np.ptp(values)
    values = values if rng.random() < 0.5 else 1 - values
    return tone(values.astype(np.float32), rng)


def text(films: Sequence[Shown], rng: Rng) -> Picture:
    """Print lines of letters."""
    page = np.full((384, int(rng.integers(280, 384))), 255, np.uint8)
    size = rng.uniform(0.3, 1.6)
    for y in range(int(rng.integers(10, 60)), 384, max(10, int(34 * size))):
        words = "".join(
            chr(rng.integers(97, 123)) if rng.random() < 0.85 else " " for _ in range(int(rng.integers(5, 40)))
        )
        cv2.putText(
            page,
            words,
            (int(rng.integers(5, 60)), y),
            cv2.FONT_HERSHEY_SIMPLEX,
            size,
            0,
            max(1, round(2 * size)),
            cv2.LINE_AA,
        )
    return vary(page if rng.random() < 0.6 else 255 - page, rng)


def phantom(films: Sequence[Shown], rng: Rng) -> Picture:
    """Draw ellipses, bars, rings and grids, as test objects have."""
    canvas = np.full((320, 320), int(rng.integers(0, 120)), np.uint8)
    for _ in range(int(rng.integers(1, 9))):
        centre = tuple(int(value) for value in rng.integers(40, 280, 2))
        extent = tuple(int(value) for value in rng.integers(8, 140, 2))
        shade, fill = int(rng.integers(0, 256)), -1 if rng.random() < 0.7 else int(rng.integers(2, 12))
        if rng.random() < 0.5:
            cv2.ellipse(canvas, centre, extent, float(rng.uniform(0, 180)), 0, 360, shade, fill, cv2.LINE_AA)
        else:
            corner = tuple(a + b for a, b in zip(centre, extent, strict=True))
            cv2.rectangle(canvas, centre, corner, shade, fill)
    if rng.random() < 0.3:
        canvas[:: int(rng.integers(8, 40))] = 255
        canvas[:, :: int(rng.integers(8, 40))] = 255
    return vary(canvas, rng, turn=45)


def limb(films: Sequence[Shown], rng: Rng) -> Picture:
    """Draw one or two shafts of bone in soft tissue, with a joint: the look of a limb."""
    y, x = np.mgrid[-1:1:96j, -1:1:96j]
    middle = rng.normal(0, 0.15) + rng.normal(0, 0.15) * y + rng.normal(0, 0.06) * y**2
    spread = rng.uniform(0.3, 0.75) * (1 + rng.uniform(-0.3, 0.3) * y)
    flesh = np.sqrt(np.clip(1 - ((x - middle) / spread) ** 2, 0, 1))
    values = 0.45 * flesh
    joint = rng.uniform(-0.6, 0.6)
    shafts = [0.0] if rng.random() < 0.4 else [-0.35, 0.35]
    for place in shafts:
        width = spread * rng.uniform(0.12, 0.3) * (1 + rng.uniform(0.3, 1.2) * np.exp(-(((y - joint) / 0.18) ** 2)))
        across = np.abs(x - middle - place * spread) / width
        bone = np.where(across < 1, 0.35 + 0.65 * across**4, 0)
        gap = 1 - np.exp(-(((y - joint) / 0.02) ** 2)) * (rng.random() < 0.7)
        values = values + 0.5 * bone * gap
    for _ in range(int(rng.integers(1, 3))):
        values = cv2.GaussianBlur(values, (0, 0), rng.uniform(0.5, 1.5))
    values = np.clip(values + rng.normal(0, 0.01, values.shape), 0, 1).astype(np.float32)
    values = np.rot90(values, int(rng.integers(4))) if rng.random() < 0.5 else values
    return tone(np.ascontiguousarray(values), rng)


def drowned(films: Sequence[Shown], rng: Rng) -> Picture:
    """Drown a film in noise, or blur it until nothing is left of it."""
    shown = vary(_draw(films, rng), rng)
    if rng.random() < 0.5:
        return np.clip(0.25 * (shown - 0.5) + rng.normal(0.5, 0.35, shown.shape), 0, 1).astype(np.float32)
    blurred = cv2.GaussianBlur(shown, (0, 0), rng.uniform(12, 20))
    return np.clip((blurred - blurred.min()) / max(1e-3, float(np.ptp(blurred))), 0, 1).astype(np.float32)


MADE: dict[str, Maker] = {
    "cut out of a film": cut,
    "tiles": tiles,
    "tilted by 35 to 55 degrees": tilted,
    "noise": noise,
    "gradients, wedges": gradient,
    "print": text,
    "drawn phantoms": phantom,
    "drawn limbs": limb,
    "drowned in noise or blur": drowned,
}


# --- training ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the model is trained; see `--help`."""

    hidden: int = 96
    epochs: int = 16
    copies: int = 2
    decay: float = 1e-4
    seed: int = 0


def fold_of(group: str, folds: int) -> int:
    """Deal a patient or a series to a fold by its name."""
    return int(hashlib.sha256(group.encode()).hexdigest(), 16) % folds


def make_examples(
    films: Sequence[Shown], pictures: Sequence[Shown], makers: Sequence[Maker], recipe: Recipe
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return features, shape (n, N_FEATURES), and classes, shape (n,), of varied films and of what is none.

    Each film appears `copies` times in each of the eight poses, twice as often in the first. For every three of these
    there are two examples of what is no chest, half of them pictures, half made, each kind as often as the next.
    """
    rng = np.random.default_rng(recipe.seed)
    labels = [label for _ in films for label in (0, *range(OTHER)) for _ in range(recipe.copies)]
    shown = (film for film in films for _ in range((OTHER + 1) * recipe.copies))
    found = [features(pose(vary(film.pixels, rng), label)) for film, label in zip(shown, labels, strict=True)]
    of_kind: dict[str, list[Shown]] = {}
    for picture in pictures:
        of_kind.setdefault(picture.kind, []).append(picture)
    kinds = [*of_kind.values()]
    for number in range(len(labels) * 2 // 3):
        if kinds and number % 2:
            picture = _draw(kinds[rng.integers(len(kinds))], rng)
            other = vary(picture, rng, window=(0.35, 1.1) if rng.random() < 0.6 else (0.9, 1.2), turn=20)
        else:
            other = makers[rng.integers(len(makers))](films, rng)
        found.append(features(pose(other, int(rng.integers(OTHER)))))
        labels.append(OTHER)
    return np.stack(found), np.array(labels)


def fit(found: NDArray[np.float32], labels: NDArray[np.int64], recipe: Recipe) -> ScopeModel:
    """Fit the perceptron to examples."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    mean, scale = found.mean(0), 1 / (found.std(0) + 0.05)
    network = MLPClassifier(
        (recipe.hidden,),
        alpha=recipe.decay,
        batch_size=min(512, len(found)),
        max_iter=recipe.epochs,
        n_iter_no_change=recipe.epochs + 1,
        random_state=recipe.seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of epochs is chosen, not waited for
        network.fit((found - mean) * scale, labels)
    return ScopeModel(
        mean=mean.astype(np.float32),
        scale=scale.astype(np.float32),
        weights=tuple(weights.astype(np.float16).astype(np.float32) for weights in network.coefs_),
        biases=tuple(biases.astype(np.float32) for biases in network.intercepts_),
        provenance={},
    )


def train(
    films: Sequence[Shown], pictures: Sequence[Shown], recipe: Recipe, *, without: Collection[str] = ()
) -> ScopeModel:
    """Train on films and pictures, but for the kinds named in `without`."""
    makers = [maker for kind, maker in MADE.items() if kind not in without]
    pictures = [picture for picture in pictures if picture.kind not in without]
    return fit(*make_examples(films, pictures, makers, recipe), recipe)


# --- measuring --------------------------------------------------------------------------------------------------------

POSES: dict[str, tuple[str, Callable[[Picture], Picture]]] = {
    "turned by 90 degrees": ("gate.rotation", lambda shown: pose(shown, 1)),
    "turned by 180 degrees": ("gate.rotation", lambda shown: pose(shown, 2)),
    "turned by 270 degrees": ("gate.rotation", lambda shown: pose(shown, 3)),
    "flipped up-down": ("gate.rotation", lambda shown: np.ascontiguousarray(shown[::-1])),
    "inverted": ("gate.polarity", lambda shown: pose(shown, 4)),
    "inverted and turned by 90 degrees": ("gate.polarity", lambda shown: pose(shown, 5)),
}
"""Films that must be refused, and the code that says why."""


class Count:
    """How many pictures of a kind were seen and refused, and with which codes."""

    def __init__(self) -> None:
        self.n = 0
        self.refused = 0
        self.codes: Counter[str] = Counter()
        self.names: dict[str, str] = {}

    def add(self, shown: Picture, model: ScopeModel, name: str = "") -> None:
        """Run the gate's content checks on a picture; remember by name what is refused."""
        checks = gate.check_content(shown, GatePolicy(), model=model)
        failed = tuple(check.code for check in checks if check.status == "fail")
        self.n += 1
        self.refused += bool(failed)
        self.codes.update(failed)
        if failed and name:
            self.names[name] = " ".join(failed)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types."""
        found = {"n": self.n, "refused": self.refused, "codes": dict(sorted(self.codes.items()))}
        return found | ({"names": dict(sorted(self.names.items()))} if self.names else {})


Counts = defaultdict[str, Count]


def measure(model: ScopeModel, films: Sequence[Shown], pictures: Sequence[Shown], counts: Counts, rng: Rng) -> None:
    """Add what the gate makes of films and pictures that the model has not seen."""
    for film in films:
        shown = small(film.pixels)
        counts["all films"].add(shown, model, film.name)
        if film.kind == "trusted":
            counts["trusted films"].add(shown, model)
        for name, (_, change) in POSES.items():
            counts[name].add(change(shown), model)
    for kind, maker in MADE.items():
        for _ in films[::2]:
            counts[kind].add(maker(films, rng), model)
    for picture in pictures:
        counts[picture.kind].add(small(picture.pixels), model)


def cross_validate(films: Sequence[Shown], pictures: Sequence[Shown], recipe: Recipe, *, folds: int) -> dict[str, Any]:
    """Measure every film and picture with a model that saw neither its patient nor its series."""
    counts: Counts = defaultdict(Count)
    rng = np.random.default_rng(recipe.seed + 1)
    for fold in range(folds):
        seen, unseen = _split(films, folds, fold)
        pictures_seen, pictures_unseen = _split(pictures, folds, fold)
        measure(train(seen, pictures_seen, recipe), unseen, pictures_unseen, counts, rng)
        logger.info("fold %d of %d: %d refused so far", fold + 1, folds, counts["all films"].refused)
    return {name: count.to_dict() for name, count in counts.items()}


def leave_kinds_out(films: Sequence[Shown], pictures: Sequence[Shown], recipe: Recipe, *, folds: int) -> dict[str, Any]:
    """Measure each kind of what is no chest with a model that saw nothing of it, nor the films of the first fold."""
    seen, unseen = _split(films, folds, 0)
    counts: Counts = defaultdict(Count)
    rng = np.random.default_rng(recipe.seed + 2)
    for kind in sorted({picture.kind for picture in pictures} | set(MADE)):
        model = train(seen, pictures, recipe, without=[kind])
        others = [small(picture.pixels) for picture in pictures if picture.kind == kind]
        for shown in others or (MADE[kind](unseen, rng) for _ in unseen):
            counts[kind].add(shown, model)
        logger.info("without %s: %d of %d refused", kind, counts[kind].refused, counts[kind].n)
    return {name: count.to_dict() for name, count in counts.items()}


def render(report: dict[str, Any]) -> str:
    """Return the tables of a report in Markdown; docs/gate.md shows them."""
    seen, unseen = report["out of fold"], report["kind not seen in training"]
    lines = ["| chest films as they are | n | refused | by |", "|---|---|---|---|"]
    for name in ("all films", "trusted films"):
        count = seen[name]
        codes = ", ".join(f"`{code}` {number}" for code, number in count["codes"].items())
        lines.append(f"| {name} | {count['n']:,} | {count['refused']} ({_share(count)}) | {codes} |")
    lines += ["", "| films that must be refused | n | refused | with the code |", "|---|---|---|---|"]
    for name, (code, _) in POSES.items():
        count = seen[name]
        own = f"`{code}` {count['codes'][code] / count['n']:.2%}"
        lines.append(f"| {name} | {count['n']:,} | {_share(count)} | {own} |")
    lines += ["", "| what is no frontal chest | n | refused | its kind left out of training |", "|---|---|---|---|"]
    for name, count in seen.items():
        if name in unseen:
            lines.append(
                f"| {name} | {count['n']:,} | {_share(count)} | {_share(unseen[name])} of {unseen[name]['n']:,} |"
            )
    return "\n".join(lines) + "\n"


def _share(count: dict[str, Any]) -> str:
    return f"{count['refused'] / count['n']:.2%}"


def _split(pictures: Sequence[Shown], folds: int, fold: int) -> tuple[list[Shown], list[Shown]]:
    held = [fold_of(picture.group, folds) == fold for picture in pictures]
    return (
        [picture for picture, out in zip(pictures, held, strict=True) if not out],
        [picture for picture, out in zip(pictures, held, strict=True) if out],
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m training.scope", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of films as PNG or JPEG; docs/training.md")
    parser.add_argument("--pictures", type=Path, required=True, help="pictures of other things, a sub-folder a kind")
    parser.add_argument("--out", type=Path, required=True, help="the model to write, .npz")
    parser.add_argument("--report", type=Path, help="measure by cross-validation first; JSON to write")
    parser.add_argument("--folds", type=int, default=5, help="of the cross-validation")
    parser.add_argument("--leave-out", default="", help="patients, or films without one, kept out of the model")
    for name, text in (
        ("hidden", "units of the hidden layer"),
        ("epochs", "passes over the examples"),
        ("copies", "varied copies of each film in each pose"),
        ("seed", "of every draw"),
    ):
        parser.add_argument(f"--{name}", type=int, default=getattr(Recipe, name), help=text)
    parser.add_argument("--decay", type=float, default=Recipe.decay, help="weight decay")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    recipe = Recipe(
        hidden=options.hidden, epochs=options.epochs, copies=options.copies, decay=options.decay, seed=options.seed
    )
    films = read_shown_films(options.data, read_films(options.data))
    pictures = read_pictures(options.pictures)
    if options.report is not None:
        measured = {"recipe": asdict(recipe), "folds": options.folds}
        measured["out of fold"] = cross_validate(films, pictures, recipe, folds=options.folds)
        measured["kind not seen in training"] = leave_kinds_out(films, pictures, recipe, folds=options.folds)
        options.report.write_text(json.dumps(measured, indent=1) + "\n")
    left_out = set(filter(None, options.leave_out.split(",")))
    films = [film for film in films if film.group not in left_out]
    kinds = Counter(picture.kind for picture in pictures)
    provenance = {
        "made by": "python -m training.scope",
        "recipe": asdict(recipe),
        "films": len(films),
        "left out": sorted(left_out),
        "pictures": dict(sorted(kinds.items())),
        "use": "research; films: NIH Clinical Center, ChestX-ray14 and others, see docs/gate.md",
    }
    model = replace(train(films, pictures, recipe), provenance=provenance)
    options.out.write_bytes(save_model(model))


if __name__ == "__main__":
    main()
