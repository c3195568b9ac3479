"""Where data enters: models, candidate modules, probe examples."""
