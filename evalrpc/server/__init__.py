"""The server: the calls, what they check, and all that is wired together."""
