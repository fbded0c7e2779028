"""Speed, measured side by side with its limit in the same run. `python -m benchmarks` runs it; nothing here asserts a time."""
