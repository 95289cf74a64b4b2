"""What the picture shows: checked on a small copy of it, before the network runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ptxsdk.detection import Check
from ptxsdk.gate.policy import GatePolicy, verdict
from ptxsdk.geometry import Geometry

if TYPE_CHECKING:
    from ptxsdk.gate.scope import ScopeModel

Values = npt.NDArray[np.float32]

_BLACK, _WHITE = 0.02, 0.98
_AFTER_CONSTANT = (
    "gate.contrast",
    "gate.saturation",
    "gate.padding",
    "gate.scope",
    "gate.rotation",
    "gate.polarity",
)


def sample(tensor: Values, geometry: Geometry, mean: float, std: float) -> Values:
    """Return display values of a preprocessed film, some 70 pixels a side: `check_content` judges coarse features.

    Parameters
    ----------
    tensor : ndarray, shape ``geometry.target``, float32
        ``(display value - mean) / std``.
    geometry : Geometry
        Where the film lies in it.
    mean, std : float
        Normalisation of the network's input.
    """
    x0, y0, x1, y1 = geometry.content
    step = sample_step(geometry)
    shown: Values = tensor[y0:y1:step, x0:x1:step] * std + mean
    return shown


def sample_step(geometry: Geometry) -> int:
    """Return the distance, in pixels of the network's input, of the pixels that `sample` takes."""
    x0, y0, x1, y1 = geometry.content
    return max(1, min(y1 - y0, x1 - x0) // 64)


def check_content(shown: Values, policy: GatePolicy, *, model: ScopeModel | None = None) -> tuple[Check, ...]:
    """Check what the film shows.

    Parameters
    ----------
    shown : ndarray, shape (rows, columns), float32
        Display values of the film in [0, 1], some 70 pixels a side, as `sample` returns them: nothing else is needed.
    policy : GatePolicy
        The limits.
    model : ScopeModel, optional
        Default: the one that ships.

    Returns
    -------
    tuple of Check
        gate.constant, gate.contrast, gate.saturation, gate.padding, gate.scope, gate.rotation, gate.polarity.  Of a
        blank film nothing but the first is known; of what is no chest neither rotation nor polarity.
    """
    from ptxsdk.gate.scope import shipped_model

    spread = float(shown.max() - shown.min())
    detail = f"display values span {spread:.3f}"
    if not spread >= 0.01:
        unknown = (Check(code, "unknown", "the film is blank") for code in _AFTER_CONSTANT)
        return (Check("gate.constant", "fail", detail), *unknown)
    return (
        Check("gate.constant", "pass", detail),
        _check_contrast(shown, policy),
        *_check_extremes(shown, policy),
        *_check_chest(shown, policy, model or shipped_model()),
    )


def _check_contrast(shown: Values, policy: GatePolicy) -> Check:
    contrast = float(_grid_means(shown, 16).std())
    return verdict("gate.contrast", contrast >= policy.minimum_contrast, f"contrast {contrast:.3f}")


def _check_extremes(shown: Values, policy: GatePolicy) -> tuple[Check, Check]:
    """Tell black that comes in from the edge, which is padding, collimation or air, from a window that cuts off."""
    black = shown <= _BLACK
    padding = _touching_the_edge(black)
    picture = shown.size - int(padding.sum())
    cut_off = int(((black & ~padding) | (shown >= _WHITE)).sum())
    saturation, share = cut_off / max(1, picture), 1 - picture / shown.size
    return (
        verdict(
            "gate.saturation",
            saturation <= policy.maximum_saturation,
            f"{saturation:.0%} of the picture is wholly black or white",
        ),
        verdict("gate.padding", share <= policy.maximum_padding, f"{share:.0%} of the picture is black border"),
    )


def _check_chest(shown: Values, policy: GatePolicy, model: ScopeModel) -> tuple[Check, Check, Check]:
    from ptxsdk.gate.scope import TURNS

    found = model(shown)
    scope = verdict(
        "gate.scope", found.chest >= policy.minimum_scope, f"probability of a frontal chest {found.chest:.3f}"
    )
    if scope.status == "fail":
        unknown = "no chest to judge it by"
        return scope, Check("gate.rotation", "unknown", unknown), Check("gate.polarity", "unknown", unknown)
    likeliest = TURNS[found.turned.index(max(found.turned))]
    turn = "upright" if likeliest == 0 else f"turned by {likeliest} degrees counterclockwise"
    positive = 1 - found.inverted
    return (
        scope,
        verdict(
            "gate.rotation",
            found.turned[0] >= policy.minimum_upright,
            f"probability of an upright film {found.turned[0]:.3f}; most likely {turn}",
        ),
        verdict(
            "gate.polarity",
            positive >= policy.minimum_positive,
            f"probability of a film shown as a positive {positive:.3f}",
        ),
    )


def _touching_the_edge(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return the 8-connected parts of a mask that reach its edge."""
    import cv2

    # A frame joins them to one part.
    framed = np.pad(mask.astype(np.uint8), 1, constant_values=1)
    cv2.floodFill(framed, None, (0, 0), 2, flags=8)
    found: npt.NDArray[np.bool_] = framed[1:-1, 1:-1] == 2
    return found


def _grid_means(values: Values, cells: int) -> npt.NDArray[np.float64]:
    """Mean of `values` in each cell of a `cells` x `cells` grid; an axis shorter than the grid repeats its pixels."""
    means = values.astype(np.float64)
    for axis in (0, 1):
        length = means.shape[axis]
        starts = np.arange(cells) * length // cells
        counts = np.maximum(np.append(starts[1:], length) - starts, 1)
        shape = (-1, 1) if axis == 0 else (1, -1)
        means = np.add.reduceat(means, starts, axis=axis) / counts.reshape(shape)
    return means
