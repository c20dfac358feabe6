"""Accuracy won back, from seconds to minutes: rounding, reconstruction, fine-tuning."""
