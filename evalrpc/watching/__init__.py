"""Delivery of job changes to watchers."""
