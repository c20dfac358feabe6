"""What becomes of one layer."""

from __future__ import annotations

from dataclasses import dataclass

from fxfactor.errors import PreconditionError
from fxfactor.plan.ladder import check_bits, check_weight_bits


@dataclass(frozen=True)
class LayerPlan:
    """What becomes of one convolution or linear layer.

    groups: groups of the spatial factor; None leaves the layer in one piece. mid: channels between the factors, a
    multiple of groups; None means as many as go in. weight_bits: 1 (−1 and 1) to 8; activation_bits: 2 to 8; None is floating
    point. activation_bits holds for the tensors that enter the layer (both factors of a factorized one).
    """

    groups: int | None = None
    mid: int | None = None
    weight_bits: int | None = None
    activation_bits: int | None = None

    def __post_init__(self) -> None:
        for name in ("groups", "mid"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise PreconditionError(f"{name} must be a positive int or None, found {value!r}")
        if self.mid is not None and self.groups is None:
            raise PreconditionError(f"mid={self.mid} needs groups: a layer left in one piece has no middle")
        check_weight_bits(self.weight_bits, "weight_bits")
        check_bits(self.activation_bits, "activation_bits")
