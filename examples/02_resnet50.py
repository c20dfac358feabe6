"""ResNet-50 with a plan of its own: look at what a level stands for, change some layers, apply it. 40 seconds.

python examples/02_resnet50.py
"""

from pathlib import Path

import torch
from torchvision.models import resnet50

import fxfactor

out = Path("out")
out.mkdir(exist_ok=True)

torch.manual_seed(0)
model = resnet50(weights=None).eval()
image = torch.randn(1, 3, 64, 64)

# a level and a bit width are short ways to write a plan: one line for each layer
graph = fxfactor.capture(model, image)
plan = fxfactor.Plan.uniform(graph, level=4, weight_bits=4, activation_bits=4)
print("layer2.0.conv2 before:", plan.layers["layer2.0.conv2"])

# the first block stays in one piece at 8 bits; one layer gets a wider middle
for site in ("layer1.0.conv1", "layer1.0.conv2", "layer1.0.conv3"):
    plan = plan.with_layer(site, groups=None, weight_bits=8, activation_bits=8)
plan = plan.with_layer("layer2.0.conv2", groups=8, mid=192)
print("layer2.0.conv2 after: ", plan.layers["layer2.0.conv2"])

plan.save(out / "resnet50-plan.json")  # JSON, to be edited by hand as well
qmodel = fxfactor.transform(model, plan=fxfactor.Plan.load(out / "resnet50-plan.json"), example_inputs=image)
fxfactor.summary(qmodel)

exported = fxfactor.export(qmodel, out / "resnet50.onnx")
print(f"exported {exported.path}, relative difference {exported.relative_difference:.1g}")
