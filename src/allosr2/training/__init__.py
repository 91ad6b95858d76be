"""From photographs to weights: configs, recipes, Algorithm 1's step, the loop, checkpoints."""
