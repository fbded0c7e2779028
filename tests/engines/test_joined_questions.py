"""Who gets the answer to a question whose client has gone."""

from collections import deque

from evalrpc.engines.gateway.answers import _Recipient, _SameBody


class Client:
    """A client that may have gone, as far as it matters who gets an answer."""

    def __init__(self, *, has_gone: bool = False) -> None:
        self.has_gone = has_gone


def test_an_answer_is_not_given_to_a_client_that_has_joined_and_gone() -> None:
    gone, there = Client(has_gone=True), Client()
    same = _SameBody(asking=[gone], joined=deque([_Recipient(gone)]))  # type: ignore[list-item, arg-type]
    assert same.has_orphan(), "so the next client can join"
    same.joined.append(_Recipient(there))  # type: ignore[arg-type]
    assert not same.has_orphan()
    recipient = same.next_joined()
    assert recipient is not None
    assert not recipient.exchange.has_gone
    assert same.next_joined() is None
