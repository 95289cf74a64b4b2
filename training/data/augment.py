"""Augmentation of a cached film and its region together: geometry, tone, noise, blur and collimation borders.

The paper rotates, shifts and flips. Scale, tone and noise stand for other detectors and other processing, black
borders for collimation. Polarity is never inverted: the preprocessing has settled it.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Ranges and probabilities of the random changes.

    Attributes
    ----------
    rotation : float
        Largest rotation either way, degrees.
    shift : float
        Largest shift either way, share of the side.
    scale : float
        Largest magnification, and its inverse the smallest.
    flip : float
        Probability of a horizontal flip.
    gamma : float
        Standard deviation of the log of the gamma.
    window : float
        Largest share of the grey range lost at the dark end, and lost or gained at the bright end.
    blur, noise, borders : float
        Probability of a blur, of Gaussian noise, of black borders.
    """

    rotation: float = 12.0
    shift: float = 0.06
    scale: float = 1.2
    flip: float = 0.5
    gamma: float = 0.25
    window: float = 0.12
    blur: float = 0.15
    noise: float = 0.25
    borders: float = 0.1

    def __call__(self, image: Plane, region: Plane | None, rng: np.random.Generator) -> tuple[Plane, Plane | None]:
        """Return a changed copy of a film and of its region.

        Parameters
        ----------
        image : ndarray
            (S, S) uint8.
        region : ndarray or None
            (S, S) uint8, moved as the image is; a region is never moved out of sight altogether.
        rng : numpy.random.Generator
            Source of every draw.

        Returns
        -------
        tuple of ndarray
            The film and the region (None where there was none).
        """
        matrix = self._matrix(image.shape[0], rng)
        moved = _warp(region, matrix, cv2.INTER_NEAREST) if region is not None else None
        if region is not None and region.any() and not (moved is not None and moved.any()):
            matrix, moved = np.float32([[1, 0, 0], [0, 1, 0]]), region.copy()
        image = cv2.LUT(_warp(image, matrix, cv2.INTER_LINEAR), self._tone(rng))
        if rng.random() < self.blur:
            image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.9))
        if rng.random() < self.noise:
            grain = rng.standard_normal(image.shape, np.float32) * rng.uniform(1.0, 7.0)
            image = np.clip(image + grain, 0, 255).astype(np.uint8)
        if rng.random() < self.borders:
            _blacken_borders(image, moved, rng)
        return image, moved

    def _matrix(self, side: int, rng: np.random.Generator) -> NDArray[np.float32]:
        """Return the (2, 3) affine matrix of a random rotation, scale, shift and flip about the centre."""
        angle = np.deg2rad(rng.uniform(-self.rotation, self.rotation))
        scale = np.exp(rng.uniform(-1.0, 1.0) * np.log(self.scale))
        mirror = -1.0 if rng.random() < self.flip else 1.0
        linear = scale * np.array([[np.cos(angle) * mirror, -np.sin(angle)], [np.sin(angle) * mirror, np.cos(angle)]])
        centre = np.full(2, (side - 1) / 2)
        offset = centre - linear @ centre + rng.uniform(-self.shift, self.shift, 2) * side
        return np.column_stack([linear, offset]).astype(np.float32)

    def _tone(self, rng: np.random.Generator) -> Plane:
        """Return the (256,) table of a random window and gamma."""
        low = rng.uniform(0, self.window)  # never lifted: padding and collimation stay black
        high = 1 + rng.uniform(-self.window, self.window)
        grey = np.clip((np.arange(256) / 255 - low) / (high - low), 0, 1)
        return np.rint(255 * grey ** np.exp(rng.normal(0, self.gamma))).astype(np.uint8)


AUGMENTATIONS = {
    "portable": Augmentation(),
    "paper": Augmentation(scale=1.0, gamma=0.0, window=0.0, blur=0.0, noise=0.0, borders=0.0),
    "none": None,
}
"""By name: all of it, the paper's rotation, shift and flip, nothing."""


def _warp(plane: Plane, matrix: NDArray[np.float32], interpolation: int) -> Plane:
    """Return a (S, S) plane moved by a (2, 3) affine matrix, black where nothing lands."""
    return cv2.warpAffine(plane, matrix, plane.shape[::-1], flags=interpolation)


def _blacken_borders(image: Plane, region: Plane | None, rng: np.random.Generator) -> None:
    """Blacken strips of up to 6 % along random sides, in place, unless that hides a region altogether."""
    top, bottom, left, right = (rng.uniform(0, 0.06, 4) * image.shape[0] * (rng.random(4) < 0.6)).astype(int)
    kept = (slice(top, image.shape[0] - bottom), slice(left, image.shape[1] - right))
    if region is not None and region.any() and not region[kept].any():
        return
    for plane in (image,) if region is None else (image, region):
        inner = plane[kept].copy()
        plane[:] = 0
        plane[kept] = inner
