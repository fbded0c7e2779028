"""Runs on this machine, each as its own process tree."""
