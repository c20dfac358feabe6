"""fxfactor: depth-factorized, quantized CNNs from any PyTorch CNN, ready for FINN."""

from fxfactor.capture import capture

__all__ = ["capture"]
