"""Ten thousand forged tokens, of which none lets anybody in. `make campaign` sends a million over the network."""

from collections import Counter
from itertools import islice
from pathlib import Path

from campaigns.forgeries import Forgeries
from campaigns.sign_in import tokens_of
from door import Door, Within
from identity_provider import IdentityProvider

from evalrpc.errors import EvalrpcError

COUNT = 10_000


def test_no_forged_token_lets_anybody_in(within: Within, tmp_path: Path, provider: IdentityProvider) -> None:
    good, ended = tokens_of(tmp_path)
    forgeries = Forgeries(good, ended, provider, seed=1)
    refusals: Counter[tuple[str, str]] = Counter()

    async def use(door: Door) -> None:
        for token in islice(forgeries, COUNT):
            try:
                principal = await door.enter(token)
            except EvalrpcError as error:
                refusals[error.reason, error.message] += 1
            else:
                raise AssertionError(f"{token!r} is let in as {principal}")
        for token in (*good, *forgeries.signed):
            await door.enter(token)

    within(use, oidc=provider.settings())
    assert {reason for reason, _ in refusals} == {"UNAUTHENTICATED"}
    assert refusals.total() == COUNT
    assert len(refusals) >= 12, "too few of the ways to be refused were tried"
