"""Claims of "Grokking at the Edge of Numerical Stability" (arXiv 2501.04697)."""
