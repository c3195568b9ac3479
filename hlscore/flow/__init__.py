"""The whole flow: model, probes or weights alone, scores, plan."""
