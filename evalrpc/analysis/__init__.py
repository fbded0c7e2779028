"""Analysis across jobs: comparison with a baseline, and metrics over time."""
