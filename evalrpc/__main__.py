"""`evalrpc` and `python -m evalrpc`: the command line, or what to install where only the client is."""

import sys

_NOT_INSTALLED = 2


def main() -> None:
    """Run the command line."""
    try:
        from evalrpc.cli import main as command_line
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        sys.stderr.write("evalrpc: the command line is not installed: pip install 'evalrpc[cli]'\n")
        sys.exit(_NOT_INSTALLED)
    command_line(prog_name="evalrpc")


if __name__ == "__main__":
    main()
