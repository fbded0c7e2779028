"""Jobs beside one another: comparison with a baseline, and metrics over time."""
