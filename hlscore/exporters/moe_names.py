"""Model types for which PEFT rewrites target names, and how to name a weight all the same.

For mixture-of-experts models whose experts transformers 5 fuses, PEFT turns every LoRA target
that ends in the old name of an expert matrix into the experts of all layers, also the exact name
of a dense layer. A target that names the parameter is left alone.
"""

from __future__ import annotations
