"""The network in integers: a QONNX file becomes the graph that FINN takes, exactly."""
