"""What is known about Brevitas and about rounding: layers, levels, ranges, and copies for training and evaluation."""
