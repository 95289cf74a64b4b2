"""Run a network over cached films."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from training.data.cache import FilmCache
from training.data.films import Film
from training.data.stream import to_input
from training.metrics import Floats

PADDING_LOGIT = -100.0


class Predictions(NamedTuple):
    """Logits of n films: patches (n, P, P) and mask (n, S, S)."""

    patch_logits: Floats
    mask_logits: Floats


Predictor = Callable[[NDArray[np.float32]], tuple[Floats, Floats]]
"""The network as a function: images (n, 1, S, S) to patch and mask logits."""


def predict(network: nn.Module | Predictor, cache: FilmCache, films: Sequence[Film], *, batch: int = 8) -> Predictions:
    """Run a network over cached films, without augmentation.

    The mask logits of the padding around a film are set far below any threshold: there is nothing to find there.
    """
    run = torch_predictor(network) if isinstance(network, nn.Module) else network
    patches, masks = [], []
    for start in range(0, len(films), batch):
        images = np.stack([cache.image(film) for film in films[start : start + batch]])
        patch, mask = run(to_input(images).numpy())
        patches.append(patch)
        masks.append(mask)
    predictions = Predictions(np.concatenate(patches), np.concatenate(masks))
    for film, mask in zip(films, predictions.mask_logits, strict=True):
        mask[:] = without_padding(mask, cache.content(film))
    return predictions


def without_padding(mask_logits: NDArray[np.floating], content: tuple[int, int, int, int]) -> Floats:
    """Return a map, (S, S) float32, that finds nothing outside the film: `content` is x0, y0, x1, y1, half-open."""
    x0, y0, x1, y1 = content
    inside = np.full(mask_logits.shape, PADDING_LOGIT, np.float32)
    inside[y0:y1, x0:x1] = mask_logits[y0:y1, x0:x1]
    return inside


def torch_predictor(network: nn.Module) -> Predictor:
    """Return a network as a predictor, on the device it is on."""
    device = next(network.parameters()).device

    def run(images: NDArray[np.float32]) -> tuple[Floats, Floats]:
        network.eval()
        with torch.inference_mode():
            output = network(torch.from_numpy(images).to(device))
        return output.patch_logits.float().cpu().numpy(), output.mask_logits.float().cpu().numpy()

    return run


def onnx_predictor(path: Path) -> Predictor:
    """Return an ONNX file as a predictor, run by onnxruntime one film at a time."""
    from ptxsdk.telemetry import without_telemetry

    with without_telemetry():
        import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(images: NDArray[np.float32]) -> tuple[Floats, Floats]:
        rows = [session.run(["patch_logits", "mask_logits"], {"image": image[None]}) for image in images]
        patches, masks = zip(*rows, strict=True)
        return np.concatenate(patches), np.concatenate(masks)

    return run
