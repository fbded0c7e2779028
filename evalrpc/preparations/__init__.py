"""Preparations: an operator's commands that make of a model's folder the one that a harness loads."""
