"""The operations around the network; each has one name here, in csrc/ops, tests/ops and benchmarks."""

from ptxsdk.ops.aggregate import Aggregate, aggregate, mask_probability
from ptxsdk.ops.preprocess import preprocess, preprocess_into

__all__ = ["Aggregate", "aggregate", "mask_probability", "preprocess", "preprocess_into"]
