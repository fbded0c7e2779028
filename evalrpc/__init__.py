"""A gRPC service that queues model evaluations, runs the real harness, and streams every change to watchers."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("evalrpc")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0.0.0"
