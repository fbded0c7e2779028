"""`python -m evalrpc.cli`."""

from evalrpc.cli import main

main(prog_name="evalrpc")
