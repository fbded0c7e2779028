"""Send forged tokens to a server, and check that none lets anybody in.

    make campaign INPUTS=1000000 SEED=1

Every one is answered with UNAUTHENTICATED, the good ones are good to the end, the server's log has few lines, no traceback and
no token, and its memory stays flat. A seed repeats the choices.
"""

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final

import grpc
from callers import add_token, revoke_token
from campaigns.forgeries import Forgeries
from campaigns.fuzz import IN_FLIGHT, MAX_GROWTH_MIB, MAX_PROBLEMS, main, rss_mib
from identity_provider import AUDIENCE, IdentityProvider
from server_process import ServerProcess

from evalrpc.client.failures import from_rpc_error
from evalrpc.errors import UnauthenticatedError
from evalrpc.server.app import SERVICE
from evalrpc.server.auth.refusals import PERIOD_SECONDS
from evalrpc.v1.callers_pb2 import GetCallerRequest, GetCallerResponse

PATH: Final = f"/{SERVICE.full_name}/GetCaller"
REQUEST: Final = GetCallerRequest().SerializeToString()


@dataclass
class Trial:
    """What came of the forged tokens."""

    statuses: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    rss_mib: list[float] = field(default_factory=list)
    """The server's memory after the first half and after all."""
    seconds: float = 0.0

    def note(self, status: str, problem: str = "") -> None:
        self.statuses[status] += 1
        if problem and len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)


def tokens_of(data_dir: Path) -> tuple[list[str], list[str]]:
    """Make tokens, and return those that are good and those that were revoked or have expired."""
    good = [add_token(data_dir, f"owner-{number}") for number in range(20)]
    ended = [add_token(data_dir, expires_ns=1) for _ in range(10)] + [add_token(data_dir) for _ in range(10)]
    for token in ended[10:]:
        revoke_token(data_dir, token)
    return good, ended


async def run_trial(server: ServerProcess, forgeries: Forgeries, count: int) -> Trial:
    """Send all forged tokens, in two halves, and the good ones after each."""
    trial, some = Trial(), iter(forgeries)
    async with grpc.aio.insecure_channel(server.address) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(PATH)
        began = time.monotonic()
        for share in (count // 2, count - count // 2):
            half = islice(some, share)
            await asyncio.gather(*(send_all(call, half, trial) for _ in range(IN_FLIGHT)))
            trial.rss_mib.append(rss_mib(server.pid))
            for token in (*forgeries.good, *forgeries.signed):
                await call(REQUEST, metadata=(("authorization", f"Bearer {token}"),))
        trial.seconds = time.monotonic() - began
    return trial


async def send_all(call: "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]", tokens: Iterator[str], trial: Trial) -> None:
    """Send one token after another, of those that other senders take too."""
    for token in tokens:
        try:
            answer = await call(REQUEST, metadata=(("authorization", f"Bearer {token}"),))
        except grpc.aio.AioRpcError as error:
            is_refused = type(from_rpc_error(error)) is UnauthenticatedError
            trial.note(error.code().name, "" if is_refused else f"{error.code().name}: {error.details()}: {token!r}")
        else:
            trial.note("OK", f"let in as {GetCallerResponse.FromString(answer)}: {token!r}")


def problems_at_the_end(trial: Trial, log: str, exit_code: int, tokens: list[str]) -> Iterator[str]:
    if trial.rss_mib[1] - trial.rss_mib[0] > MAX_GROWTH_MIB:
        yield f"the server grew from {trial.rss_mib[0]} to {trial.rss_mib[1]} MiB in the second half"
    if log.count("sign-in refused") > 2 * (2 + trial.seconds / PERIOD_SECONDS):
        yield f"the log has {log.count('sign-in refused')} lines about refused sign-ins"
    if "Traceback" in log:
        yield f"tracebacks in the log: {log[log.index('Traceback') :][:3000]}"
    if any(token[21:] in log for token in tokens):
        yield "the log has a token"
    if exit_code:
        yield f"the server stopped with {exit_code}"


def run_campaign(folder: Path, inputs: int, seed: int) -> dict[str, object]:
    """Run a campaign in a folder and return its counts and problems."""
    with IdentityProvider() as provider:
        oidc = f'[oidc]\nissuer = "{provider.issuer}"\naudience = "{AUDIENCE}"\nrole = "viewer"\n'
        server = ServerProcess(folder / "data", f'auth = "required"\ngpus = "0"\n{oidc}')
        good, ended = tokens_of(folder / "data")
        server.start()
        try:
            forgeries = Forgeries(good, ended, provider, seed)
            trial = asyncio.run(run_trial(server, forgeries, inputs))
            exit_code = server.stop()
            log, tokens = server.log_path.read_text(), [*good, *ended, *forgeries.signed]
            problems = [*trial.problems, *problems_at_the_end(trial, log, exit_code, tokens)]
        finally:
            server.clean_up()
    return {
        "inputs": trial.statuses.total(),
        "per_second": round(inputs / trial.seconds),
        "rss_mib": trial.rss_mib,
        "statuses": dict(trial.statuses),
        "problems": problems,
    }


if __name__ == "__main__":
    sys.exit(main(run_campaign, __doc__ or ""))
