"""What is on disk: saved networks and QONNX."""
