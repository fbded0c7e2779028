"""Who calls: tokens of the server's own, client certificates, and tokens of an identity provider; and what callers may do."""
