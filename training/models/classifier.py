"""The paper's baseline: a backbone, global average pooling and one linear unit, trained on image labels alone."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from training.models.backbones import Network, create_backbone
from training.models.output import Output


class Classifier(Network):
    """Classify a film from the mean of its last feature map.

    The linear unit runs on every place before the mean, which is the same number, so that the patch logits are its
    class activation map (Zhou et al., CVPR 2016) and the image logit is their mean: ``top_k`` with k = P * P.

    Parameters
    ----------
    backbone : str
        Any timm model with feature maps; the paper's is ``resnet50``.
    size : int
        Side S of the input.
    dropout : float
        Dropped share of the channels in front of the logit.
    weights, frozen, in_chans
        See `training.models.backbones.create_backbone`.

    Attributes
    ----------
    grid : int
        Side P of the last feature map.
    """

    def __init__(
        self,
        backbone: str = "resnet50",
        *,
        size: int = 384,
        dropout: float = 0.1,
        weights: str = "imagenet",
        frozen: int = 0,
        in_chans: int = 1,
    ) -> None:
        super().__init__()
        self.size = size
        self.backbone = create_backbone(backbone, weights=weights, frozen=frozen, in_chans=in_chans)
        self.grid = size // self.backbone.feature_info.reduction()[-1]
        self.head = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(self.backbone.feature_info.channels()[-1], 1, 1))

    def forward(self, image: Tensor) -> Output:
        """Return the activation map (N, P, P) and the same at the size of the image (N, S, S), as logits."""
        patches = self.head(self.backbone(image)[-1])
        mask = F.interpolate(patches, size=image.shape[-2:], mode="bilinear", align_corners=False)
        return Output(patches.squeeze(1), mask.squeeze(1))
