"""What every network of the project returns, and how its input is scaled."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

INPUT_MEAN = 0.5
INPUT_STD = 0.5


class Output(NamedTuple):
    """What a network returns, as logits.

    Attributes
    ----------
    patch_logits : Tensor
        (N, P, P); the logit that patch j holds the finding.
    mask_logits : Tensor
        (N, S, S); the logit that a pixel belongs to the finding.
    """

    patch_logits: Tensor
    mask_logits: Tensor
