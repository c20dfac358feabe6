"""The passes of fxfactor: one file each, graph in, graph out (see `fxfactor.pipeline.Pass`)."""

from fxfactor.passes.factorize_depth import FactorizeDepth
from fxfactor.passes.fold_batch_norm import FoldBatchNorm
from fxfactor.passes.quantize import Quantize

__all__ = ["FactorizeDepth", "FoldBatchNorm", "Quantize"]
