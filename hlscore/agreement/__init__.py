"""How far rankings and plans agree: rank correlation, overlap, what moved."""
