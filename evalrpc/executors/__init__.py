"""Executors: start runs, wait for them, end them, and find them again."""
