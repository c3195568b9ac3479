"""What a choice costs, and which choice a budget buys."""
