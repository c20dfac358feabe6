"""A weight, and the statistics of what passes through it, become two factors."""
