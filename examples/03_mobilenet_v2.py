"""MobileNetV2, which is depthwise by design: what is left alone, and why; quantized and exported. 30 seconds.

python examples/03_mobilenet_v2.py
"""

from collections import Counter
from pathlib import Path

import torch
from torchvision.models import mobilenet_v2

import fxfactor
from fxfactor.passes import FactorizeDepth, FoldBatchNorm, Quantize

out = Path("out")
out.mkdir(exist_ok=True)

torch.manual_seed(0)
model = mobilenet_v2(weights=None).eval()
graph = fxfactor.capture(model, torch.randn(1, 3, 32, 32))

# a pass is graph in, graph out; it tells what it changed and what it left alone
result = FactorizeDepth(level="depthwise")(graph)
print(f"{len(result.changes)} convolutions factorized")
for reason, count in Counter(skip.reason for skip in result.skips).most_common():
    print(f"{count:3d} left alone: {reason}")

# the pipeline that transform() runs is open: here with the batch norms folded first
pipeline = fxfactor.Pipeline(
    FoldBatchNorm(),
    FactorizeDepth(level="depthwise"),
    Quantize(weight_bits=4, activation_bits=4),
    verify=True,  # compare graphs before and after every exact pass, in float64
)
qmodel = pipeline(graph).graph
fxfactor.summary(qmodel)

folder = fxfactor.save(qmodel, out / "mobilenet_v2")
print("saved", folder)
exported = fxfactor.export(qmodel, out / "mobilenet_v2.onnx")
print(f"exported {exported.path}, relative difference {exported.relative_difference:.1g}")
