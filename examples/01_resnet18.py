"""ResNet-18: factorize at level 3, quantize to 4 bits, save, load and export. 30 seconds on one core.

python examples/01_resnet18.py
"""

from pathlib import Path

import torch
from torchvision.models import resnet18

import fxfactor

out = Path("out")
out.mkdir(exist_ok=True)

torch.manual_seed(0)
model = resnet18(weights=None).eval()  # with internet at hand: weights="DEFAULT"
images = torch.randn(2, 3, 64, 64)

# every 3×3 convolution becomes a grouped 3×3 one (8 groups) and a 1×1 one; weights and activations get 4 bits
qmodel = fxfactor.transform(model, level=3, bits=4, example_inputs=images[:1])
fxfactor.summary(qmodel)

# an ordinary module: it runs, it trains, its state dict has names that speak
print("logits", tuple(qmodel(images).shape))
print(*[name for name, _ in qmodel.named_parameters() if name.startswith("layer1.0.conv1")], sep="\n")

# safetensors and plan.json, no pickle; the weights of the model that it is loaded onto do not matter
folder = fxfactor.save(qmodel, out / "resnet18", source="torchvision:resnet18")
again = fxfactor.load(folder, resnet18(weights=None).eval())
assert torch.equal(again.eval()(images), qmodel.eval()(images))
print("saved and loaded", folder)

# QONNX, executed again in qonnx and compared before the file appears
exported = fxfactor.export(qmodel, out / "resnet18.onnx")
print(f"exported {exported.path}, relative difference {exported.relative_difference:.1g}")
