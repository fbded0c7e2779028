"""Start a program with another account, in a cgroup, from which nothing that it starts can escape.

    python -I -S account_start.py CGROUP UID GROUPS PROGRAM ARGUMENT...

GROUPS are the further groups, by number, separated by commas. Only then does anything run that the account could have changed.
"""
# ruff: noqa: PTH120 - it is run by a bare interpreter, without pathlib

import os
import sys


def main() -> None:
    """Become the program. Raises OSError."""
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import shim  # type: ignore[import-not-found]  # beside this file

    cgroup, uid, groups, *argv = sys.argv[1:]
    if failure := shim.enter(cgroup):
        raise OSError(failure)
    os.umask(shim.PRIVATE_UMASK)
    shim.take_account(int(uid), [int(group) for group in groups.split(",") if group], shim.load_prctl())
    os.execv(argv[0], argv)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main()
