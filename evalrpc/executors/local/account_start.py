"""Start a program with another account, in a cgroup, from which nothing that it starts can escape.

    python -I -S account_start.py CGROUP UID GROUPS DESCRIPTOR PROGRAM ARGUMENT...

GROUPS are the further groups, by number, separated by commas. DESCRIPTOR is a file with the folder and the environment of the
program, by marshal. It is to be started itself without these: the environment may make the dynamic loader load what the account
has put into some folder. Only once it has the account does anything run that the account could have changed.
"""
# ruff: noqa: PTH120 - it is run by a bare interpreter, without pathlib

import marshal
import os
import sys
from contextlib import suppress


def main() -> None:
    """Become the program. Raises OSError."""
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import shim  # type: ignore[import-not-found]  # beside this file

    cgroup, uid, groups, descriptor, *argv = sys.argv[1:]
    with os.fdopen(int(descriptor), "rb") as file:
        folder, environment = marshal.load(file)  # noqa: S302 - from the server itself
    if failure := shim.enter(cgroup):
        raise OSError(failure)
    os.umask(shim.PRIVATE_UMASK)
    shim.take_account(int(uid), [int(group) for group in groups.split(",") if group], shim.load_prctl())
    with suppress(OSError):  # the program will say so
        os.chdir(folder)
    os.execve(argv[0], argv, environment)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main()
