"""Its place puts this folder on the path, so that any test can import `fake_server`."""

import signal


def pytest_configure() -> None:
    """Let Ctrl-C reach what a test starts: a shell that runs the tests in the background has them ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
