"""ClaSegNet: one backbone, a patch-probability head and a segmentation decoder on shared features.

After Zhao, Zhang, Avinash et al., "ClaSegNet" (C-MIMI 2018): the mask branch improves the classifier because both
read the same feature maps. Here those maps are fused by a feature pyramid, so that the patch head too sees the
high-resolution evidence (a thin pleural line at the apex), and not the coarsest level alone; and the decoder adds
to the patch map, so that a pixel stands out only where its patch does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.models.backbones import DEFAULT_BACKBONE, Network, create_backbone
from training.models.output import Output

STRIDES = (4, 8, 16, 32)
_PATCH_PRIOR = -3.0
_PIXEL_PRIOR = -3.0


class ClaSegNet(Network):
    """Classify patches and segment from one feature pyramid.

    The network is fully convolutional: a film of another size (a multiple of 32) gives a grid in proportion.

    Parameters
    ----------
    backbone : str
        Any timm model with feature maps at strides 4, 8, 16 and 32.
    size, grid : int
        Side S of the input and side P of the patch grid.
    width : int
        Channels of every pyramid level.
    dropout : float
        Dropped share of the channels in front of the patch logits.
    decoder : bool
        Segment; without it the mask is the patch map at the size of the image, for training that shows no mask.
    context : bool
        Add one logit of the whole film, from its pooled coarsest features, to that of every patch: what speaks for or
        against the finding without being a place of it.
    weights, frozen, in_chans
        See `training.models.backbones.create_backbone`.

    Raises
    ------
    ValueError
        The backbone lacks a level, or the grid is finer than its second or empty.
    """

    def __init__(
        self,
        backbone: str = DEFAULT_BACKBONE,
        *,
        size: int = 384,
        grid: int = 12,
        width: int = 64,
        dropout: float = 0.1,
        decoder: bool = True,
        context: bool = False,
        weights: str = "imagenet",
        frozen: int = 0,
        in_chans: int = 1,
    ) -> None:
        super().__init__()
        if not 1 <= grid <= size // STRIDES[1]:
            raise ValueError(f"a grid has 1 to {size // STRIDES[1]} patches a side at {size} pixels, not {grid}")
        self.size = size
        self.grid = grid
        self.backbone = create_backbone(backbone, weights=weights, frozen=frozen, in_chans=in_chans)
        strides = self.backbone.feature_info.reduction()
        if not set(STRIDES) <= set(strides):
            raise ValueError(f"{backbone} has feature maps at strides {strides}, not at 4, 8, 16 and 32")
        self._levels = [strides.index(stride) for stride in STRIDES]
        channels = [self.backbone.feature_info.channels()[level] for level in self._levels]

        self._finest = 0 if decoder else 1  # the patch head reads from stride 8 up
        self.lateral = nn.ModuleList(_conv(count, width, 1, activate=False) for count in channels[self._finest :])
        self.smooth = nn.ModuleList(_conv(width, width, 3) for _ in self.lateral[:-1])
        self.mask_head = nn.Conv2d(width, 1, 1) if decoder else None
        self.patch_share = nn.Parameter(torch.tensor(0.5)) if decoder else None

        descents = sum(size // stride >= grid for stride in STRIDES[2:])  # patches no finer than their features
        self.descend = nn.ModuleList(_conv(width, width, 3, stride=2) for _ in range(descents))
        self.patch_head = nn.Sequential(_conv(width, width, 3), nn.Dropout2d(dropout))
        self.patch_logit = nn.Conv2d(width, 1, 1)
        self.film_logit = nn.Conv2d(channels[-1], 1, 1) if context else None
        for head, prior in ((self.mask_head, _PIXEL_PRIOR), (self.patch_logit, _PATCH_PRIOR)):
            if head is not None:
                nn.init.constant_(head.bias, prior)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> Output:
        """Run the network.

        Parameters
        ----------
        image : Tensor
            (N, C, S, S) float; values in [0, 1] scaled by ``(v - 0.5) / 0.5``.

        Returns
        -------
        Output
            Patch logits (N, P, P) and mask logits (N, S, S).
        """
        maps = self.backbone(image)
        pyramid = self._fuse([maps[level] for level in self._levels[self._finest :]])
        evidence, *coarser = pyramid[1 - self._finest :]
        for descend, level in zip(self.descend, coarser, strict=False):
            evidence = descend(evidence)
            evidence = evidence + _resized(level, evidence)
        grid = round(self.grid * image.shape[-1] / self.size)
        patches = self.patch_logit(self.patch_head(evidence))
        if self.film_logit is not None:
            patches = patches + self.film_logit(maps[self._levels[-1]].mean((2, 3), keepdim=True))
        if patches.shape[-1] != grid:
            patches = F.interpolate(patches, size=(grid, grid), mode="bilinear", align_corners=False)
        mask = patches
        if self.mask_head is not None:
            detail = self.mask_head(pyramid[0])
            carried = F.interpolate(patches, size=detail.shape[-2:], mode="bilinear", align_corners=False)
            mask = detail + self.patch_share * carried
        mask = F.interpolate(mask, size=image.shape[-2:], mode="bilinear", align_corners=False)
        return Output(patches.squeeze(1), mask.squeeze(1))

    def _fuse(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Pass coarse context down the pyramid: maps from fine to coarse in, fused maps out."""
        fused = [self.lateral[-1](maps[-1])]
        for level in reversed(range(len(maps) - 1)):
            own = self.lateral[level](maps[level])
            fused.insert(0, self.smooth[level](own + F.interpolate(fused[0], size=own.shape[-2:], mode="nearest")))
        return fused


def _resized(maps: Tensor, like: Tensor) -> Tensor:
    """Return maps at the size of others; the sizes differ where a backbone does not pad its borders."""
    if maps.shape[-2:] == like.shape[-2:]:
        return maps
    return F.interpolate(maps, size=like.shape[-2:], mode="nearest")


def _conv(inputs: int, outputs: int, kernel: int, *, stride: int = 1, activate: bool = True) -> nn.Sequential:
    """Return convolution, batch norm and (unless told otherwise) ReLU."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    if activate:
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)
