"""Li et al. 2018 (arXiv 1711.06373): patch probabilities from the last feature map, trained with boxes and MIL."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from training.models.backbones import Network, create_backbone
from training.models.output import Output

_PATCH_PRIOR = -3.0
_WIDTH = 512


class LiNet(Network):
    """Resample the last feature map to a PxP grid and classify each patch with two small convolutions.

    Parameters
    ----------
    backbone : str
        Any timm model with feature maps; the paper's is a ResNet.
    size, grid : int
        Side S of the input and side P of the patch grid.
    weights, frozen, in_chans
        See `training.models.backbones.create_backbone`.
    """

    def __init__(
        self,
        backbone: str = "resnet50",
        *,
        size: int = 384,
        grid: int = 12,
        weights: str = "imagenet",
        frozen: int = 0,
        in_chans: int = 1,
    ) -> None:
        super().__init__()
        self.size = size
        self.grid = grid
        self.backbone = create_backbone(backbone, weights=weights, frozen=frozen, in_chans=in_chans)
        channels = self.backbone.feature_info.channels()[-1]
        self.head = nn.Sequential(
            nn.Conv2d(channels, _WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(_WIDTH), nn.ReLU(inplace=True)
        )
        self.logit = nn.Conv2d(_WIDTH, 1, 1)
        nn.init.constant_(self.logit.bias, _PATCH_PRIOR)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> Output:
        """Return patch logits (N, P, P) and the same at the size of the image (N, S, S)."""
        grid = round(self.grid * image.shape[-1] / self.size)
        maps = self.backbone(image)[-1]
        if maps.shape[-1] != grid:
            maps = F.interpolate(maps, size=(grid, grid), mode="bilinear", align_corners=False)
        patches = self.logit(self.head(maps))
        mask = F.interpolate(patches, size=image.shape[-2:], mode="bilinear", align_corners=False)
        return Output(patches.squeeze(1), mask.squeeze(1))
