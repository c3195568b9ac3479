"""From probe batches to gradient statistics."""
