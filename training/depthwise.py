"""A faster backward pass for depthwise convolutions in bfloat16 on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

SLOW_KERNEL = 5  # below it the bfloat16 kernels keep up with float32 and its casts


class Float32DepthwiseBackward(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Run the backward pass of grouped bfloat16 convolutions in float32.

    On x86 the bfloat16 kernels of grouped convolutions with large kernels take a slow path in the backward pass; the
    same in float32 takes a third to a fifth of the time, and the weights' gradients gain precision. Wrap only
    ``loss.backward()``: the forward pass is faster in bfloat16.
    """

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is not torch.ops.aten.convolution_backward.default:
            return func(*args, **(kwargs or {}))
        gradient, weight, groups = args[0], args[2], args[9]
        slow = groups > 1 and weight.shape[-1] >= SLOW_KERNEL
        if not slow or gradient.dtype is not torch.bfloat16 or gradient.device.type != "cpu":
            return func(*args, **(kwargs or {}))
        wide = [arg.float() if isinstance(arg, torch.Tensor) else arg for arg in args]
        return tuple(None if out is None else out.bfloat16() for out in func(*wide, **(kwargs or {})))
