"""Search: a plan under a budget."""
