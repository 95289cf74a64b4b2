"""Building: precision variants of an engine, calibrated and measured on films; needs the extra 'build'."""

from ptxsdk.build.accuracy import Accuracy, Budget
from ptxsdk.build.variants import VARIANTS, Variant, build_engine, build_variants

__all__ = ["VARIANTS", "Accuracy", "Budget", "Variant", "build_engine", "build_variants"]
