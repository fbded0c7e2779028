"""The keys that the tables of an operator's programs have in common, each declared once."""

from typing import Final

from evalrpc.config.declaration import FOLDER, VARIABLES, metadata

ENVIRONMENT: Final = metadata(
    VARIABLES, "Added to its environment. May hold secrets, so it is never logged or shown.", default_text="none"
)
"""Of the field `env`."""

WORKING_DIR: Final = metadata(FOLDER, "The folder that it starts in.", default_text="the config file's folder")
"""Of the field `working_dir`."""
