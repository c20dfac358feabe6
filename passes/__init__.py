"""The passes of fxfactor: one file each, graph in, graph out (see `fxfactor.pipeline.Pass`)."""

from fxfactor.passes.factorize_depth import FactorizeDepth
from fxfactor.passes.fold_batch_norm import FoldBatchNorm
from fxfactor.passes.learn_thresholds import LearnThresholds
from fxfactor.passes.legalize_channel_multipliers import LegalizeChannelMultipliers
from fxfactor.passes.legalize_for_finn import LegalizeForFinn
from fxfactor.passes.legalize_grouped_convolutions import LegalizeGroupedConvolutions
from fxfactor.passes.legalize_pixel_input import LegalizePixelInput
from fxfactor.passes.quantize import Quantize

__all__ = [
    "FactorizeDepth",
    "FoldBatchNorm",
    "LearnThresholds",
    "LegalizeChannelMultipliers",
    "LegalizeForFinn",
    "LegalizeGroupedConvolutions",
    "LegalizePixelInput",
    "Quantize",
]
