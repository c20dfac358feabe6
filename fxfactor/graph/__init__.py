"""From a model to the normal form, and questions to it. What a pass imports is importable from here.

`normal_form` says what the normal form is; `capture` makes it. Other modules of fxfactor import the module they need.
"""

from fxfactor.graph.edits import free_path, insert_after, put_module, replace_with_chain, set_shape
from fxfactor.graph.normal_form import check_graph, finish, propagate_shapes
from fxfactor.graph.questions import (
    CONVOLUTIONS,
    LAYERS,
    TRANSPOSED,
    Convolution,
    Site,
    batch_norm_behind,
    calls_of,
    convolutions,
    hidden_convolutions,
    is_parameter,
    is_quantizer,
    kept_whole,
    layers,
    module_of,
    owner_path,
    placeholders,
    shape_of,
    sites,
    to_networkx,
)

__all__ = [
    "CONVOLUTIONS",
    "LAYERS",
    "TRANSPOSED",
    "Convolution",
    "Site",
    "batch_norm_behind",
    "calls_of",
    "check_graph",
    "convolutions",
    "finish",
    "free_path",
    "hidden_convolutions",
    "insert_after",
    "is_parameter",
    "is_quantizer",
    "kept_whole",
    "layers",
    "module_of",
    "owner_path",
    "placeholders",
    "propagate_shapes",
    "put_module",
    "replace_with_chain",
    "set_shape",
    "shape_of",
    "sites",
    "to_networkx",
]
