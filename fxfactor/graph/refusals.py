"""Models that cannot be captured as they are: wrappers are opened, the rest is refused by its true cause."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.prune import BasePruningMethod

from fxfactor.errors import CaptureError

_WRAPPERS = {
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch.optim.swa_utils.AveragedModel": "module",
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
}
"""Classes that only wrap a model, and where they keep it."""

_REPARAMETRIZED = {
    "WeightNorm": ("weight_norm", "torch.nn.utils.remove_weight_norm(layer)", "weight_norm"),
    "SpectralNorm": ("spectral_norm", "torch.nn.utils.remove_spectral_norm(layer)", "spectral_norm"),
}
"""Hook of torch.nn.utils → its function, how to undo it, and its successor in torch.nn.utils.parametrizations."""


def inner_model(model: nn.Module) -> nn.Module:
    """The model inside DataParallel, DistributedDataParallel, AveragedModel and torch.compile; else the model itself."""
    while True:
        kind = type(model)
        name = _WRAPPERS.get(f"{kind.__module__}.{kind.__qualname__}")
        if name is None:
            return model
        model = getattr(model, name)


def refuse_unready(model: nn.Module) -> None:
    """Raise CaptureError where a module is in a state or of a kind that no way of tracing works on."""
    for path, module in model.named_modules():
        reason = _reason(module)
        if reason is not None:
            where = f"module {path!r} ({type(module).__name__})" if path else f"the model ({type(module).__name__})"
            raise CaptureError(f"{where} {reason}")


def _reason(module: nn.Module) -> str | None:
    if isinstance(module, torch.jit.ScriptModule):
        return (
            "is a script (torch.jit): its layers cannot be seen, so none could be changed; pass the network that "
            "torch.jit.script or torch.jit.trace was called on"
        )
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
        return "is lazy: its weights have no shape yet; run the model once on an example, then capture it"
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod):
            name = hook._tensor_name
            return (
                f"is pruned by a mask that is applied in every call; make it permanent first: "
                f'torch.nn.utils.prune.remove(layer, "{name}")'
            )
        known = _REPARAMETRIZED.get(type(hook).__name__)
        if known is not None and type(hook).__module__.startswith("torch.nn.utils."):
            function, remedy, successor = known
            return (
                f"has the old torch.nn.utils.{function}, which computes the weight in every call; undo it first: "
                f"{remedy}, or use torch.nn.utils.parametrizations.{successor}"
            )
    if getattr(module, "return_quant_tensor", False) is True and type(module).__module__.startswith("brevitas."):
        return (
            "is a Brevitas layer with return_quant_tensor=True: what flows behind it is no tensor; pass the network in "
            "floating point and let fxfactor quantize it, or build it with return_quant_tensor=False"
        )
    return None
