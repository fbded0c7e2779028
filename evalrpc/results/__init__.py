"""Turns harness output into typed metrics."""
