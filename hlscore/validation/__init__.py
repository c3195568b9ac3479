"""Short paired trainings that try a plan out against its rivals."""
