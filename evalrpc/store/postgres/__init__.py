"""The store in a PostgreSQL database, which several servers may share. Needs the extra `postgres`."""
