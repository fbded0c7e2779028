"""Runs on this machine, as process trees of its own."""
