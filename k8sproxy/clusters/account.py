"""Whether the API server accepts the proxy's own account at a cluster: asked of it, not guessed.

Clients have no credentials of their own here: the proxy's account makes each request, and impersonates them. So where
the API server itself answers 401, it means that account, and a client that is passed the 401 reads "you must be logged
in" and looks for the fault at its own end. But what stands behind the API server may answer 401 as well: a kubelet
(logs, exec), an aggregated API server, an application behind a proxy subresource. A 401 is a doubt, then, and is
settled here: files are read again, and the account itself asks the API server for its version, impersonating nobody.
Only where that is a 401 too a plugin is run, so that whoever can have something behind the API server answer 401 can't
have the proxy sign in again and again. Any path would do: authentication comes before everything else, and unknown
credentials are a 401 even where anonymous requests are allowed.

    from        an answer other than 401      a 401          no answer
    UNTRIED     ACCEPTED                      REJECTED       UNTRIED
    ACCEPTED    ACCEPTED                      REJECTED       ACCEPTED
    REJECTED    ACCEPTED                      REJECTED       REJECTED

It is asked at the start, every INTERVAL seconds, whenever the credentials have changed, and where a request doubts it.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import NoReturn

import aiohttp
import structlog

from k8sproxy.clusters.credentials import ClusterCredentials, CredentialsError
from k8sproxy.common.states import State, table

_log = structlog.get_logger("k8sproxy")

# Seconds between two questions without a reason: how long readiness may be wrong. One small request each.
INTERVAL = 30.0
# Seconds between two questions while the account is rejected, so that mended credentials work soon.
REJECTED_INTERVAL = 5.0
# Seconds for which an answer settles every doubt: a storm of requests with a 401 is one question a second.
SETTLED = 1.0
# Seconds for an answer, connecting included: the default of limits.upstreamConnectTimeout.
TIMEOUT = 5.0

# What clients are told, and readiness.
NOT_ACCEPTED = "the API server does not accept the proxy's own credentials; tell the administrator of the proxy"


class AccountState(State):
    """What the API server last said of the account.

    UNTRIED     nothing yet                     -> ACCEPTED, REJECTED
    ACCEPTED    its credentials are accepted    -> REJECTED
    REJECTED    they are not                    -> ACCEPTED
    """

    UNTRIED = "untried"
    ACCEPTED = "accepted"
    REJECTED = "rejected"


table(
    {
        AccountState.UNTRIED: (AccountState.ACCEPTED, AccountState.REJECTED),
        AccountState.ACCEPTED: (AccountState.REJECTED,),
        AccountState.REJECTED: (AccountState.ACCEPTED,),
    }
)


class Account:
    """The account that `credentials` are for. state: see above. untrusted: why the API server's certificate was
    refused when it was last asked, "" where it was not."""

    def __init__(self, credentials: ClusterCredentials) -> None:
        self.state = AccountState.UNTRIED
        self.untrusted = ""
        self._credentials = credentials
        self._lock = asyncio.Lock()
        self._asked = -SETTLED  # when it was last asked, by the loop's clock

    async def doubt(self) -> AccountState:
        """A request met a 401: the account's state, with its credentials read again and the API server asked."""
        loop = asyncio.get_running_loop()
        async with self._lock:
            if loop.time() - self._asked >= SETTLED:
                await self._refresh(plugin=False)
                said = await self._ask()
                if said is AccountState.REJECTED and await self._refresh(plugin=True):
                    said = await self._ask()
                self._move(said)
        return self.state

    async def follow(self) -> NoReturn:
        """Keep the state true, for ever."""
        credentials = self._credentials
        while True:
            seen = credentials.generation
            async with self._lock:
                self._move(await self._ask())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REJECTED_INTERVAL if self.state is AccountState.REJECTED else INTERVAL):
                    await credentials.wait_changed(seen)

    def fault(self) -> str | None:
        """What readiness says, None where nothing is wrong. An API server that does not answer is not said here."""
        if self.state is AccountState.REJECTED:
            why = self._credentials.complaint
            return f"{NOT_ACCEPTED} (they can't be renewed: {why})" if why else NOT_ACCEPTED
        return f"the API server's certificate is not trusted: {self.untrusted}" if self.untrusted else None

    async def _refresh(self, *, plugin: bool) -> bool:
        """Whether there are other credentials now. A failure is said in the log; the ones in use are asked about."""
        try:
            return await (self._credentials.refresh_now() if plugin else self._credentials.refresh(plugin=False))
        except CredentialsError:
            return False

    async def _ask(self) -> AccountState | None:
        """What the API server says of the account; None where it does not answer."""
        credentials = self._credentials
        context = credentials.tls()
        authorization = credentials.authorization()
        url = (
            f"{'https' if context is not None else 'http'}://{credentials.authority.decode('ascii')}"
            f"{credentials.base_path}/version"
        )
        try:
            async with (
                aiohttp.ClientSession(
                    timeout=aiohttp.ClientTimeout(total=TIMEOUT), cookie_jar=aiohttp.DummyCookieJar()
                ) as session,
                session.get(
                    url,
                    ssl=context if context is not None else True,
                    server_hostname=credentials.server_name if context is not None else None,
                    headers={} if authorization is None else {"Authorization": authorization.decode("latin-1")},
                    allow_redirects=False,
                ) as response,
            ):
                status = response.status
        except aiohttp.ClientConnectorCertificateError as error:
            self.untrusted = str(getattr(error.certificate_error, "verify_message", "")) or "the handshake failed"
            credentials.suspect()  # its CA may have been replaced
            return None
        except (aiohttp.ClientError, OSError, TimeoutError):
            return None
        finally:
            self._asked = asyncio.get_running_loop().time()
        self.untrusted = ""
        return AccountState.REJECTED if status == 401 else AccountState.ACCEPTED

    def _move(self, state: AccountState | None) -> None:
        if state is None or state is self.state:
            return
        before, self.state = self.state, self.state.to(state)
        if state is AccountState.REJECTED:
            self._credentials.suspect()  # have them renewed before a request meets it
            _log.warning("cluster_account_rejected", cluster=self._credentials.name, message=NOT_ACCEPTED)
        elif before is AccountState.REJECTED:
            _log.info("cluster_account_accepted", cluster=self._credentials.name)
