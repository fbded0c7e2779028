"""Clients that carry what jobs have come to into other systems: each job that ends, at least once, also after a crash."""
