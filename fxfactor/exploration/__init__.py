"""Explore: every level at every bit width."""
