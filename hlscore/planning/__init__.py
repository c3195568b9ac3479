"""What a choice costs, and the best choice within a budget."""
