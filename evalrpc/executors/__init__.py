"""How runs are started, seen to end, ended, and found again."""
