"""Which job starts when, and each attempt from its start to its outcome."""
