"""The files: `scores.parquet`, `plan.json`, and how they are written."""
