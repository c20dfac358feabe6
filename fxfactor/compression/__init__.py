"""From a trained network to the best accelerator for a board: plans, recovery, FINN's estimates and the build, in one call."""
