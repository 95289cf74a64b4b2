"""The scope model: whether a small picture is a frontal chest, which way up, and shown as a positive or a negative.

A multilayer perceptron over brightness and edge directions, small enough for numpy.  `training.scope` makes it and
tells what it has seen; docs/gate.md says what it catches.
"""

from __future__ import annotations

import functools
import importlib.resources
import io
import json
import zipfile
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ptxsdk.errors import DetectorError

Values = npt.NDArray[np.float32]

TURNS = (0, 90, 180, 270)
"""Degrees by which a film is turned counterclockwise from upright; mirrored films are not told apart."""

SIDE = 48
_CELL = 4
_BLOCK = 6
_ANGLES = np.arange(8) * (np.pi / 4)
_DIRECTIONS: Values = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], 1).astype(np.float32)
N_FEATURES = (SIDE // _CELL) ** 2 + len(_ANGLES) * (SIDE // _BLOCK) ** 2


@dataclass(frozen=True)
class Scope:
    """What the scope model makes of a picture.

    Attributes
    ----------
    chest : float
        Probability that it shows a frontal chest, whichever way up and of whichever polarity.
    turned : tuple of float
        Probability of each of `TURNS`, given that it is a chest.
    inverted : float
        Probability that it is shown as a negative, given that it is a chest.
    """

    chest: float
    turned: tuple[float, float, float, float]
    inverted: float


@dataclass(frozen=True, eq=False)
class ScopeModel:
    """The model's weights.

    Attributes
    ----------
    mean, scale : ndarray, shape (N_FEATURES,), float32
        Features are standardised as ``(x - mean) * scale``.
    weights : tuple of ndarray, float32
        Of each layer, shape (inputs, outputs); the last has 9 outputs: upright, 90, 180, 270 degrees, the same
        inverted, and no frontal chest.
    biases : tuple of ndarray, float32
        Of each layer.
    provenance : dict
        Where it comes from.
    """

    mean: Values
    scale: Values
    weights: tuple[Values, ...]
    biases: tuple[Values, ...]
    provenance: dict[str, Any]

    def __call__(self, shown: Values) -> Scope:
        """Judge a picture.

        Parameters
        ----------
        shown : ndarray, shape (rows, columns), float32
            Display values in [0, 1] at some 70 pixels a side, without padding.
        """
        return self.judge(features(shown))

    def judge(self, found: Values) -> Scope:
        """Judge a picture by its `features`."""
        layer = (found - self.mean) * self.scale
        for weights, biases in zip(self.weights[:-1], self.biases[:-1], strict=True):
            layer = np.maximum(layer @ weights + biases, 0)
        logits = (layer @ self.weights[-1] + self.biases[-1]).astype(np.float64)
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        chest = shares[:8].reshape(2, 4)
        total = max(float(chest.sum()), 1e-30)
        turned = chest.sum(0) / total
        return Scope(
            chest=float(chest.sum()),
            turned=(float(turned[0]), float(turned[1]), float(turned[2]), float(turned[3])),
            inverted=float(chest[1].sum()) / total,
        )


def features(shown: Values) -> Values:
    """Return what the model sees of a picture: brightness on a grid, and how strong edges of each direction are.

    Neither brightness nor contrast as a whole matters.  The aspect ratio is lost: films are of any.

    Parameters
    ----------
    shown : ndarray, shape (rows, columns), float32
        Display values in [0, 1].

    Returns
    -------
    ndarray, shape (N_FEATURES,), float32
    """
    import cv2

    rows, columns = shown.shape
    square = _shares(rows) @ shown @ _shares(columns).T
    square = (square - square.mean()) / (square.std() + 0.02)
    cells = SIDE // _CELL
    grid = square.reshape(cells, _CELL, cells, _CELL).mean((1, 3))
    slopes = np.stack([cv2.Sobel(square, cv2.CV_32F, 1, 0), cv2.Sobel(square, cv2.CV_32F, 0, 1)])
    along = np.maximum(_DIRECTIONS @ slopes.reshape(2, -1), 0)
    blocks = SIDE // _BLOCK
    edges = along.reshape(-1, blocks, _BLOCK, blocks, _BLOCK).mean((2, 4))
    edges = np.sqrt(edges / (edges.mean() + 0.01))
    return np.concatenate([grid.ravel(), edges.ravel()]).astype(np.float32)


@functools.lru_cache(maxsize=256)
def _shares(length: int) -> Values:
    """Return what share of each of `SIDE` equal parts of an axis each of its `length` pixels has.

    With it a picture is made smaller by means over areas, as by OpenCV's INTER_AREA, which on a caller's short-lived
    threads leaves 0.9 kB behind with every thread (OpenCV issue 16151).

    Returns
    -------
    ndarray, shape (SIDE, length), float32
    """
    edges = np.arange(SIDE + 1)[:, None] * (length / SIDE)
    pixels = np.arange(length)
    overlap = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    shares: Values = (np.maximum(overlap, 0) * (SIDE / length)).astype(np.float32)
    return shares


def save_model(model: ScopeModel) -> bytes:
    """Return the model as the content of an ``.npz`` file, weights in half precision."""
    arrays: dict[str, Any] = {
        "mean": model.mean.astype(np.float32),
        "scale": model.scale.astype(np.float32),
        "provenance": np.frombuffer(json.dumps(model.provenance, indent=1).encode(), np.uint8),
    }
    for index, (weights, biases) in enumerate(zip(model.weights, model.biases, strict=True)):
        arrays[f"weights{index}"] = weights.astype(np.float16)
        arrays[f"biases{index}"] = biases.astype(np.float32)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def load_model(content: bytes) -> ScopeModel:
    """Return the model of the content of a file that `save_model` made."""
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        layers = sum(name.startswith("weights") for name in arrays.files)
        return ScopeModel(
            mean=arrays["mean"],
            scale=arrays["scale"],
            weights=tuple(arrays[f"weights{index}"].astype(np.float32) for index in range(layers)),
            biases=tuple(arrays[f"biases{index}"] for index in range(layers)),
            provenance=json.loads(arrays["provenance"].tobytes()),
        )


@functools.cache
def shipped_model() -> ScopeModel:
    """Return the model that ships in the wheel.

    Raises
    ------
    DetectorError
        ``detector.internal``: the installation is incomplete or damaged.
    """
    try:
        return load_model((importlib.resources.files("ptxsdk") / "models" / "scope.npz").read_bytes())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DetectorError("detector.internal", f"the gate's scope model is missing or damaged: {error}") from error
