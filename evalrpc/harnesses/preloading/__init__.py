"""What the harnesses' own interpreters run, beside the harness and the standard library. evalrpc itself imports none of it."""
