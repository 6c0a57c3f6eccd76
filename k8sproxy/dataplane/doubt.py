"""A 401 from upstream: whether it may mean the proxy's own account (account), and what becomes of the request then.

The exchange holds such an answer back and raises Doubtful; the account is asked, and the answer is passed on where it
turns out to be the client's.
"""

from __future__ import annotations

from k8sproxy.clusters.account import NOT_ACCEPTED, AccountState
from k8sproxy.common.errors import Refusal
from k8sproxy.dataplane.upstream import Endpoint, UpstreamConnection
from k8sproxy.request.requestinfo import RequestInfo


def is_doubtful(endpoint: Endpoint, info: RequestInfo) -> bool:
    """Whether a 401 to this request may mean the proxy's own account. One of an application behind a proxy subresource
    does not, unless the account is known to be rejected."""
    account = endpoint.account
    return account is not None and (not info.foreign or account.state is AccountState.REJECTED)


async def settle(endpoint: Endpoint, authorization: bytes | None, connection: UpstreamConnection | None) -> None:
    """Upstream answered 401: return where the answer is the client's. Raises Refusal where the account is meant: 502
    where it is rejected, 503 where the request met credentials that have been renewed since, and will be sent again."""
    account = endpoint.account
    if account is not None and await account.doubt() is not AccountState.ACCEPTED:
        raise Refusal(502, "upstream_unauthorized", NOT_ACCEPTED, close=True)
    if endpoint.authorization() != authorization or (connection and connection.context is not endpoint.tls()):
        raise Refusal(
            503,
            "upstream_renewed",
            "the API server did not accept the proxy's credentials, which have been renewed now; try again",
            retry_after=1,
            close=True,
        )
