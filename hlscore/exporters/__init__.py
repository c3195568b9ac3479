"""Plans in the formats of trainers, one file per trainer."""
