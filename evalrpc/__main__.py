"""The program `evalrpc`, also as `python -m evalrpc`. Imports nothing but the standard library before it needs it."""

import sys
from typing import Final

from evalrpc import extras

WRONG_CALL: Final = 2
"""As in evalrpc.cli.exit_codes, which needs what may be missing."""


def main() -> None:
    """Run the command line, or say in one sentence which library it lacks, and exit with 2."""
    try:
        from evalrpc.cli import main as command_line

        command_line(prog_name="evalrpc")
    except ModuleNotFoundError as error:
        needed = "server" if sys.argv[1:2] in (["serve"], ["doctor"]) else ""
        sys.stderr.write(f"evalrpc: {extras.missing(error, needed)}\n")
        sys.exit(WRONG_CALL)


if __name__ == "__main__":
    main()
