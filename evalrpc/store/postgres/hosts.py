"""Machines whose runs nobody sees to any more."""

import psycopg

from evalrpc.errors import ConfigurationError
from evalrpc.store.postgres.connecting import brief, connect_writer, require_valid, shown

_HOLDER = "SELECT runner_host, lease_until > clock_timestamp() FROM head FOR UPDATE"


def give_up_host(conninfo: str, host: str) -> None:
    """Note that a machine is lost, with all its runs, so that a server of another one may run the jobs.

    Raises ConfigurationError if it is not the machine that ran them, or still does.
    """
    require_valid(conninfo)
    try:
        with connect_writer(conninfo) as connection, connection.transaction():
            (row,) = connection.execute(_HOLDER).fetchall()
            known, is_held = row
            if known != host:
                raise ConfigurationError(f"the jobs ran on {known or 'no host'}, not on {host}: nothing was changed")
            if is_held:
                raise ConfigurationError(f"a server on {host} runs the jobs: stop it first, or wait until its lease expires")
            connection.execute("UPDATE head SET runner_host = ''")
    except psycopg.Error as error:
        raise ConfigurationError(f"setting store: {shown(conninfo)} can't be used: {brief(error)}") from error
