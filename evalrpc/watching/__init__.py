"""Changes of jobs on their way to whoever watches."""
