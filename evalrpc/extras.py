"""What to install when a library of an extra is missing. Needs none of them itself."""

from pathlib import Path
from typing import Final

_EXTRAS: Final = {
    "click": "cli",
    "rich": "cli",
    "grpc_health": "server",
    "grpc_reflection": "server",
    "numpy": "server",
    "pynvml": "server",
    "scipy": "server",
    "sortedcontainers": "server",
    "uvloop": "server",
    "httptools": "engines",
    "jinja2": "engines",
    "uvicorn": "http",
    "aiohttp": "endpoints",
    "yarl": "endpoints",
    "jwt": "oidc",
    "cryptography": "oidc",
    "psycopg": "postgres",
    "matplotlib": "plot",
    "plotext": "plot",
    "pandas": "pandas",
    "prometheus_client": "metrics",
    "opentelemetry": "otel",
    "mlflow": "mlflow",
    "wandb": "wandb",
    "pyarrow": "parquet",
    "mcp": "mcp",
    "hypothesis": "testing",
    "pytest": "testing",
}
"""The extra that brings each library, as pyproject.toml declares them."""


def missing(error: ModuleNotFoundError, extra: str = "") -> str:
    """Return a sentence that says what is missing and what to install. `extra` is the one that the caller needs, if it knows.

    Raises the error again if the module belongs to no extra: then the installation is broken, or it is a bug.
    """
    library = (error.name or "").partition(".")[0]
    if library not in _EXTRAS:
        raise error
    return f"{library} is missing; install it: {install_command(extra or _EXTRAS[library])}"


def install_command(extra: str) -> str:
    """Return the command that installs an extra: from the checkout that this code is in, else from where the package came."""
    checkout = Path(__file__).resolve().parent.parent
    if not (checkout / "pyproject.toml").is_file():
        return f"pip install 'evalrpc[{extra}]'"
    place = "." if Path.cwd() == checkout else str(checkout)
    return f"pip install '{place}[{extra}]'"
