"""How good results are: metrics, benchmark sets, comparisons, ablations, and how a trained flow runs."""
