"""The losses of ClaSegNet, all of them computed from logits in float32.

With p_j the probability of patch j, N the patches under the mask and M all patches, the paper maximises

    p(y | x, mask) = prod_{j in N} p_j * prod_{j in M - N} (1 - p_j)

and, where a positive film has no region, the noisy-OR ``1 - prod_j (1 - p_j)`` (Li et al., arXiv 1711.06373). A
product over hundreds of patches underflows, so Li et al. map every factor to [0.98, 1]; that keeps the product but
lets one certain patch of 256 score no more than 0.02. Sums of log-sigmoids need no such map. Both forms are here:
``floor=0`` is the exact product, ``floor=0.98`` the paper's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from training.models.output import Output

PAPER_FLOOR = 0.98
_LINEAR_BELOW = -12.0


def log_factor(logits: Tensor, floor: float = 0.0) -> Tensor:
    """Return ``log(floor + (1 - floor) * sigmoid(logits))``, of the shape of `logits`, in float32."""
    logits = logits.float()
    if floor == 0.0:
        return F.logsigmoid(logits)
    return torch.log(floor + (1.0 - floor) * torch.sigmoid(logits))


def log_region_product(patch_logits: Tensor, inside: Tensor, floor: float = 0.0) -> Tensor:
    """Return the log of the paper's product over the patches inside and outside a mask or a box.

    Parameters
    ----------
    patch_logits : Tensor
        (N, P, P) logits.
    inside : Tensor
        (N, P, P) boolean; the patches under the region. All false for a negative film.
    floor : float
        Smallest value a factor can take: 0 for the exact product, 0.98 for the paper's.

    Returns
    -------
    Tensor
        (N,) log-probability, at most 0.
    """
    signed = torch.where(inside.bool(), patch_logits, -patch_logits)
    return log_factor(signed, floor).flatten(1).sum(1)


def log_noisy_or(patch_logits: Tensor, floor: float = 0.0) -> Tensor:
    """Return ``log(1 - prod_j (1 - p_j))``, the log-probability that any patch holds the finding.

    For very negative logits the product rounds to 1 and its complement to 0; there the sum of the
    probabilities, which it tends to, takes over, so that neither the value nor the gradient is lost.

    Parameters
    ----------
    patch_logits : Tensor
        (N, P, P) logits.
    floor : float
        See `log_region_product`.

    Returns
    -------
    Tensor
        (N,) log-probability, at most 0.
    """
    logits = patch_logits.float().flatten(1)
    log_none = log_factor(-logits, floor).sum(1)
    log_rate = math.log(1.0 - floor) + torch.logsumexp(F.logsigmoid(logits), 1)
    rare = log_rate < _LINEAR_BELOW
    safe = torch.where(rare, torch.full_like(log_none, -1.0), log_none)
    return torch.where(rare, log_rate, torch.log(-torch.expm1(safe)))


def patch_targets(region: Tensor, grid: int, coverage: float = 0.05) -> Tensor:
    """Reduce pixel regions to patches.

    A patch is inside when the region covers at least `coverage` of it, or at least half as much as it covers of its
    fullest patch: a thin apical line covers little of any patch and must not vanish.

    Parameters
    ----------
    region : Tensor
        (N, S, S), non-zero inside.
    grid : int
        Patches along a side, P.
    coverage : float
        Least covered share of a patch.

    Returns
    -------
    Tensor
        (N, P, P) boolean.
    """
    covered = F.adaptive_avg_pool2d((region != 0).float().unsqueeze(1), grid).squeeze(1)
    fullest = covered.amax((1, 2), keepdim=True)
    return (covered > 0) & ((covered >= coverage) | (covered >= 0.5 * fullest))


def top_k_logit(patch_logits: Tensor, k: int) -> Tensor:
    """Return the mean of the `k` largest logits of each film: (N, P, P) to (N,)."""
    return patch_logits.float().flatten(1).topk(k, 1).values.mean(1)


def soft_dice(mask_logits: Tensor, region: Tensor, smooth: float = 1.0) -> Tensor:
    """Return one minus the soft Dice coefficient of each film: (N, S, S) logits and region to (N,)."""
    probability = torch.sigmoid(mask_logits.float()).flatten(1)
    target = (region != 0).float().flatten(1)
    overlap = (probability * target).sum(1)
    return 1.0 - (2.0 * overlap + smooth) / (probability.sum(1) + target.sum(1) + smooth)


def focal(logits: Tensor, target: Tensor, gamma: float) -> Tensor:
    """Return the cross-entropy of each element, weighed by ``(1 - p_true) ** gamma`` (Lin et al., ICCV 2017).

    Parameters
    ----------
    logits, target : Tensor
        Of one shape; targets are 0 or 1.
    gamma : float
        0 is the plain cross-entropy.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return entropy if gamma == 0.0 else entropy * (-torch.expm1(-entropy)) ** gamma


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """How the terms of ClaSegNet's loss are weighed.

    Attributes
    ----------
    region : float
        Patch terms where the region is known (masks, boxes, negatives).
    noisy_or : float
        Positive films whose region is not known.
    image : float
        Image-level cross-entropy on the pooled patch logits.
    pixel, dice : float
        The decoder's cross-entropy and soft Dice.
    focal : float
        Exponent of the focal form of the decoder's cross-entropy; 0 is the plain one.
    inside : float
        Extra weight of the patches inside a region over those outside.
    pooled : int
        How many of the largest patch logits the image-level term pools.
    exact_product : bool
        Use the paper's product summed over all patches instead of its mean over patches.
    floor : float
        Smallest factor in the products, 0 or 0.98 (`PAPER_FLOOR`); anything but 0 implies `exact_product`.
    """

    region: float = 5.0
    noisy_or: float = 0.2
    image: float = 1.0
    pixel: float = 3.0
    dice: float = 1.0
    focal: float = 0.0
    inside: float = 3.0
    pooled: int = 4
    exact_product: bool = False
    floor: float = 0.0


class Targets(NamedTuple):
    """The truth of a batch of N films.

    Attributes
    ----------
    label : Tensor
        (N,) float; 1 for a positive film.
    region : Tensor
        (N, S, S) uint8; non-zero inside the mask or the boxes.
    has_region : Tensor
        (N,) boolean; the patches are known (a mask or boxes; a negative where regions are used at all).
    label_weight : Tensor
        (N,) float; trust in the label.
    mask_weight : Tensor
        (N,) float; trust in the mask as a pixel mask; 0 where there is none (boxes).
    """

    label: Tensor
    region: Tensor
    has_region: Tensor
    label_weight: Tensor
    mask_weight: Tensor


def clasegnet_loss(output: Output, targets: Targets, weights: LossWeights) -> dict[str, Tensor]:
    """Return the terms of the loss, each a scalar already weighed, and their sum as ``total``.

    By default the region term is the mean over patches of the log-factors, with the patches inside re-weighed: the
    same optimum as the product, but its scale depends neither on the grid nor on the size of the finding. Every term
    is a sum over films divided by their number, so that a label half trusted counts half.

    Parameters
    ----------
    output : Output
        Patch logits (N, P, P) and mask logits (N, S, S).
    targets : Targets
        The truth of the same films.
    weights : LossWeights
        How the terms are weighed.

    Returns
    -------
    dict of str to Tensor
        ``region``, ``noisy_or``, ``image``, ``pixel``, ``dice`` and ``total``.
    """
    patch_logits = output.patch_logits.float()
    positive = targets.label > 0
    known = targets.has_region.float() * targets.label_weight
    unknown = (~targets.has_region & positive).float() * targets.label_weight
    inside = patch_targets(targets.region, patch_logits.shape[-1])

    if weights.exact_product or weights.floor:
        region = -log_region_product(patch_logits, inside, weights.floor)
    else:
        region = F.binary_cross_entropy_with_logits(
            patch_logits,
            inside.float(),
            pos_weight=torch.tensor(weights.inside, device=patch_logits.device),
            reduction="none",
        ).mean((1, 2))
    image = F.binary_cross_entropy_with_logits(
        top_k_logit(patch_logits, weights.pooled), targets.label, reduction="none"
    )
    pixel = focal(output.mask_logits.float(), (targets.region != 0).float(), weights.focal).mean((1, 2))
    dice = soft_dice(output.mask_logits, targets.region)

    terms = {
        "region": weights.region * (region * known).mean(),
        "noisy_or": weights.noisy_or * (-log_noisy_or(patch_logits, weights.floor) * unknown).mean(),
        "image": weights.image * (image * targets.label_weight).mean(),
        "pixel": weights.pixel * (pixel * targets.mask_weight).mean(),
        "dice": weights.dice * (dice * targets.mask_weight * positive).mean(),
    }
    return terms | {"total": torch.stack(list(terms.values())).sum()}


def li2018_loss(
    output: Output, targets: Targets, *, weight: float = 5.0, floor: float = PAPER_FLOOR
) -> dict[str, Tensor]:
    """Return the loss of Li et al.: the product over patches for films with a region, the noisy-OR for the others.

    Parameters
    ----------
    output : Output
        Patch logits (N, P, P) are read.
    targets : Targets
        A region is the box, or whatever stands for it; negatives count by the complement of the noisy-OR.
    weight : float
        Their lambda, the weight of films with a region.
    floor : float
        Smallest factor of the products.

    Returns
    -------
    dict of str to Tensor
        ``region``, ``noisy_or`` and ``total``.
    """
    inside = patch_targets(targets.region, output.patch_logits.shape[-1])
    product = -log_region_product(output.patch_logits, inside, floor)  # of a negative: no patch holds the finding
    noisy_or = -log_noisy_or(output.patch_logits, floor)
    positive = targets.label > 0
    located = (targets.has_region & positive).float() * targets.label_weight
    image = torch.where(positive, noisy_or, product) * (targets.label_weight - located)
    terms = {"region": weight * (product * located).mean(), "noisy_or": image.mean()}
    return terms | {"total": torch.stack(list(terms.values())).sum()}


def classifier_loss(output: Output, targets: Targets) -> dict[str, Tensor]:
    """Return the cross-entropy of the mean patch logit as ``total``: image labels alone."""
    logit = output.patch_logits.float().flatten(1).mean(1)
    entropy = F.binary_cross_entropy_with_logits(logit, targets.label, reduction="none")
    return {"total": (entropy * targets.label_weight).mean()}
