"""The float32 backward pass of depthwise convolutions gives the gradients of the plain one."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from training.depthwise import Float32DepthwiseBackward  # noqa: E402


def gradients(layer, image, mode):
    image = image.clone().requires_grad_()
    layer.zero_grad()
    output = layer(image)
    with mode:
        output.square().sum().backward()
    return image.grad, layer.weight.grad


def test_gradients_agree_with_double_precision():
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 6, 5, padding=2, groups=6, bias=False).bfloat16()
    image = torch.randn(2, 6, 9, 11).bfloat16()
    exact = nn.Conv2d(6, 6, 5, padding=2, groups=6, bias=False).double()
    exact.weight.data = layer.weight.data.double()
    wanted = gradients(exact, image.double(), torch.enable_grad())
    found = gradients(layer, image, Float32DepthwiseBackward())
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype is torch.bfloat16
        assert (a.double() - b).abs().max() < 0.02 * b.abs().max()


def test_other_convolutions_are_left_alone():
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3)
    image = torch.randn(1, 3, 8, 8)
    for a, b in zip(
        gradients(layer, image, Float32DepthwiseBackward()), gradients(layer, image, torch.enable_grad()), strict=True
    ):
        assert torch.equal(a, b)
