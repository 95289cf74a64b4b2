"""Outline the lungs on a film: a small network, its training, and the clean-up of what it predicts.

The outlines are where made positives start from (`training.made_positives`), so a doubtful outline is worth less than
none: what does not look like two lungs comes back empty.
"""

from __future__ import annotations

import argparse
import csv
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

logger = logging.getLogger(__name__)

Planes = NDArray[np.uint8]

WORKING_SIZE = 160
"""Side the network works at; its logits, at half that, are interpolated to the film."""


_SOURCE = 24  # characters of a file name; what follows counts the films of one case (day, view, part)


class LungNet(nn.Module):
    """A U-Net of 0.2 million parameters: (N, 1, S, S) float in [0, 1] to (N, S, S) logits, S a multiple of 16.

    Parameters
    ----------
    widths : sequence of int
        Channels at strides 2, 4, 8 and so on.
    """

    def __init__(self, widths: Sequence[int] = (12, 24, 40, 64)) -> None:
        super().__init__()
        ins = (1, *widths[:-1])
        self.down = nn.ModuleList(
            nn.Sequential(_conv(i, o, stride=2), _conv(o, o)) for i, o in zip(ins, widths, strict=True)
        )
        self.wide = nn.Sequential(_conv(widths[-1], widths[-1], dilation=2), _conv(widths[-1], widths[-1], dilation=3))
        self.up = nn.ModuleList(_conv(low + high, low) for low, high in pairwise(widths))
        self.head = nn.Conv2d(widths[0], 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logit that a pixel belongs to a lung."""
        # a film's own contrast, so that windows and detectors matter less
        flat = image.flatten(2)
        maps = [(image - flat.mean(2)[..., None, None]) / (flat.std(2)[..., None, None] + 0.05)]
        for step in self.down:
            maps.append(step(maps[-1]))
        fused = maps[-1] + self.wide(maps[-1])
        for step, skipped in zip(reversed(self.up), reversed(maps[1:-1]), strict=True):
            above = F.interpolate(fused, scale_factor=2.0, mode="bilinear", align_corners=False)
            fused = step(torch.cat([skipped, above], 1))
        return F.interpolate(self.head(fused), size=image.shape[-2:], mode="bilinear", align_corners=False).squeeze(1)


@dataclass(frozen=True, kw_only=True)
class Plausible:
    """What two lungs look like, as shares of the square film.

    Attributes
    ----------
    least, most : float
        Area of one lung.
    symmetry : float
        Least area of the smaller lung over that of the larger.
    level : float
        Largest difference in height between the two centres.
    apart : float
        Least distance between the two centres along a row.
    height : float
        Least height of a lung.
    solidity : float
        Least share of its convex hull that a lung fills.
    """

    least: float = 0.035
    most: float = 0.26
    symmetry: float = 0.4
    level: float = 0.14
    apart: float = 0.2
    height: float = 0.25
    solidity: float = 0.8


def train_lungs(
    images: Planes, outlines: Planes, *, steps: int, seed: int, batch: int = 12, lr: float = 4e-3
) -> nn.Module:
    """Train a network on films with outlined lungs.

    Parameters
    ----------
    images : ndarray
        (n, S, S) uint8, preprocessed films.
    outlines : ndarray
        (n, S, S) uint8, non-zero inside a lung.
    steps, seed, batch : int
        Steps of the run, its seed, and the films in a step.
    lr : float
        Peak learning rate.

    Returns
    -------
    nn.Module
        The network, in evaluation mode.
    """
    torch.manual_seed(seed)
    network = LungNet()
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.15)
    films = _resize(images)
    truth = (_resize(np.where(outlines != 0, np.uint8(255), np.uint8(0))) >= 0.5).float()
    network.train()
    for step in range(steps):
        chosen = torch.randint(len(films), (batch,))
        image, target = _augment(films[chosen], truth[chosen])
        logits = network(image)
        probability = torch.sigmoid(logits)
        overlap = 2 * (probability * target).sum((1, 2)) + 1
        dice = overlap / (probability.sum((1, 2)) + target.sum((1, 2)) + 1)
        loss = F.binary_cross_entropy_with_logits(logits, target) + 1 - dice.mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            logger.info("step %d: loss %.4f", step, loss.item())
    return network.eval()


def predict_lungs(network: nn.Module, images: Planes, *, batch: int = 32, plausible: Plausible | None = None) -> Planes:
    """Outline the lungs of films.

    Parameters
    ----------
    network : nn.Module
        As `train_lungs` returns it.
    images : ndarray
        (n, S, S) uint8, preprocessed films; may be memory-mapped.
    batch : int
        Films at a time.
    plausible : Plausible, optional
        What is taken for two lungs.

    Returns
    -------
    ndarray
        (n, S, S) uint8: 1 in the lung at the left of the image, 2 in that at the right, 0 elsewhere; all 0 where the
        prediction does not look like two lungs.
    """
    plausible = plausible or Plausible()
    side = images.shape[-1]
    planes = np.zeros(images.shape, np.uint8)
    for start in range(0, len(images), batch):
        films = _resize(np.asarray(images[start : start + batch]))
        with torch.inference_mode():
            logits = network(films[:, None]) + network(films[:, None].flip(-1)).flip(-1)
            logits = F.interpolate(logits[:, None], size=(side, side), mode="bilinear", align_corners=False)[:, 0]
            score = torch.sigmoid(logits / 2).numpy()
        for row, plane in enumerate(score, start):
            planes[row] = separate_lungs(plane, plausible)
    return planes


def separate_lungs(score: NDArray[np.float32], plausible: Plausible) -> Planes:
    """Turn the probability of lung (S, S) float32 into outlines (S, S) uint8 {0, 1, 2}, empty where not plausible."""
    side = score.shape[-1]
    empty = np.zeros(score.shape, np.uint8)
    lung = cv2.GaussianBlur(score, (0, 0), side / 128) >= 0.5  # a smooth score has a smooth outline
    count, labels, stats, centres = cv2.connectedComponentsWithStats(lung.astype(np.uint8))
    if count < 3:
        return empty
    largest = 1 + np.argsort(stats[1:, cv2.CC_STAT_AREA])[:-3:-1]
    left, right = sorted(largest, key=lambda index: centres[index][0])
    share = stats[[left, right], cv2.CC_STAT_AREA] / side**2
    across, down = np.abs(centres[right] - centres[left]) / side
    middle = (centres[left][0] + centres[right][0]) / 2 / side
    if (
        share.min() < plausible.least
        or share.max() > plausible.most
        or share.min() < plausible.symmetry * share.max()
        or down > plausible.level
        or across < plausible.apart
        or not 0.3 < middle < 0.7
    ):
        return empty
    for value, index in ((1, left), (2, right)):
        contours, _ = cv2.findContours((labels == index).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        hull = cv2.contourArea(cv2.convexHull(contours[0]))
        if cv2.contourArea(contours[0]) < plausible.solidity * hull or (
            stats[index, cv2.CC_STAT_HEIGHT] < plausible.height * side
        ):
            return np.zeros(score.shape, np.uint8)
        cv2.drawContours(empty, contours, 0, value, cv2.FILLED)  # filled: holes go
    return empty


def dice(found: Planes, truth: Planes) -> NDArray[np.float64]:
    """Return the Dice coefficient of each film of two (n, S, S) stacks, non-zero inside; 1 where both are empty."""
    inside, wanted = found != 0, truth != 0
    total = inside.sum((1, 2)) + wanted.sum((1, 2))
    return np.where(total == 0, 1.0, 2 * (inside & wanted).sum((1, 2)) / np.maximum(total, 1))


def _conv(inputs: int, outputs: int, *, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """Return a 3x3 convolution, batch norm and ReLU."""
    convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def _resize(planes: Planes) -> Tensor:
    """Return (n, S, S) uint8 planes as (n, 160, 160) float32 in [0, 1]."""
    size = (WORKING_SIZE, WORKING_SIZE)
    small = [cv2.resize(plane, size, interpolation=cv2.INTER_AREA) for plane in planes]
    return torch.from_numpy(np.stack(small).astype(np.float32) / 255)


def _augment(films: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Return (N, 1, S, S) films and (N, S, S) outlines moved together, the films changed in tone as well.

    A hundred films of one collection teach a network that collection's framing and tone; hence wide ranges, a smooth
    field of brightness for opacities and grids, and blocks for devices and markers.
    """
    count, side = len(films), films.shape[-1]

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(count, 1, 1).uniform_(low, high)

    angle, scale = uniform(-0.35, 0.35).flatten(), torch.exp(uniform(-0.35, 0.3)).flatten()
    stretch, mirror = torch.exp(uniform(-0.15, 0.15)).flatten(), torch.where(torch.rand(count) < 0.5, -1.0, 1.0)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    shift = torch.empty(count, 2).uniform_(-0.2, 0.2)
    matrix = torch.stack(
        [torch.stack([cos * mirror * stretch, -sin, shift[:, 0]], 1), torch.stack([sin * mirror, cos, shift[:, 1]], 1)],
        1,
    )
    grid = F.affine_grid(matrix, [count, 1, side, side], align_corners=False)
    image = F.grid_sample(films[:, None], grid, align_corners=False)[:, 0]
    target = F.grid_sample(truth[:, None], grid, align_corners=False)[:, 0]

    field = F.interpolate(torch.randn(count, 1, 5, 5), size=(side, side), mode="bicubic", align_corners=False)[:, 0]
    image = image + field * uniform(0, 0.12) * (image > 0.02)
    image = image.clamp(0, 1) ** torch.exp(uniform(-0.7, 0.7))
    image = image * uniform(0.6, 1.25) + uniform(-0.12, 0.12)
    blurred = F.avg_pool2d(image[:, None], 3, 1, 1)[:, 0]
    image = image + (image - blurred) * uniform(-1.0, 2.0)
    image = image + torch.randn_like(image) * uniform(0, 0.06)
    for row in range(count):
        if torch.rand(()) < 0.4:
            y, x = torch.randint(side, (2,)).tolist()
            height, width = torch.randint(4, side // 4, (2,)).tolist()
            image[row, y : y + height, x : x + width] = torch.rand(()).item()
    return image.clamp(0, 1)[:, None], (target >= 0.5).float()


def _read_outlined(data: Path, size: int) -> tuple[list[str], Planes, Planes]:
    """Return the names (n), films and outlines (n, S, S) uint8 of the manifest's films that have lung outlines."""
    from training.data.cache import read_gray, sdk_preprocess

    with (data / "manifest.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["lungs"]]
    films = [np.rint(sdk_preprocess(read_gray(data / row["image"]), size)[0] * 255) for row in rows]
    outlines = [sdk_preprocess(read_gray(data / row["lungs"]), size)[0] >= 0.5 for row in rows]
    return [_owner(row) for row in rows], np.stack(films).astype(np.uint8), np.stack(outlines).astype(np.uint8)


def _owner(row: dict[str, str]) -> str:
    """Return the patient of a film; where it is not known, what the films of one source's patient have in common."""
    return row["patient"] or Path(row["image"]).stem[:_SOURCE]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train on the outlined films of a data folder, report the held-out Dice, and outline every film of it."""
    from training.data.cache import read_gray, sdk_preprocess

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with manifest.csv")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="archive of `images` (paths) and `lungs` to write; the weights go beside it",
    )
    parser.add_argument("--size", type=int, default=384, help="side of the preprocessed films")
    parser.add_argument("--steps", type=int, default=1200, help="steps of 12 films")
    parser.add_argument("--seed", type=int, default=0, help="seed of every draw")
    parser.add_argument("--held-out", type=int, default=15, help="patients kept from training to report the Dice of")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    size = options.size

    owners, films, outlines = _read_outlined(options.data, size)
    patients = sorted(set(owners))
    np.random.default_rng(options.seed).shuffle(patients)
    held = np.isin(owners, patients[: options.held_out])
    network = train_lungs(films[~held], outlines[~held], steps=options.steps, seed=options.seed)
    torch.save(network.state_dict(), options.out.with_suffix(".pt"))
    found = predict_lungs(network, films[held])
    kept = found.any((1, 2))
    scores = dice(found, outlines[held])[kept]
    logger.info(
        "held out: %d films, %d outlined, Dice %.4f (least %.4f)", held.sum(), kept.sum(), scores.mean(), scores.min()
    )

    with (options.data / "manifest.csv").open(newline="") as stream:
        images = [row["image"] for row in csv.DictReader(stream)]
    lungs = np.zeros((len(images), size, size), np.uint8)
    for row, image in enumerate(images):
        film = np.rint(sdk_preprocess(read_gray(options.data / image), size)[0] * 255).astype(np.uint8)
        lungs[row] = predict_lungs(network, film[None])[0]
    logger.info("outlined %d of %d films", lungs.any((1, 2)).sum(), len(images))
    np.savez_compressed(options.out, images=np.array(images), lungs=lungs)


if __name__ == "__main__":
    main()
