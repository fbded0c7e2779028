"""What helps to test this package and those that extend it."""
