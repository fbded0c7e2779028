"""The page at `/`, and the sign-in of its browsers."""
