"""Where the recorder listens and what it is called, as the tailnet has it just now.

tailscaled comes up seconds after its unit does, and addresses come with it. So what is missing only for now is told
apart from what will never work: the start waits for the first (NotYetError) and fails for the second (StartError).
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence

from k8sproxy.common.config.addresses import TAILNET, ListenAddress
from k8sproxy.common.errors import Refusal, StartError
from k8sproxy.common.sockets import bind
from k8sproxy.common.tailnet.localapi import LocalAPI


class NotYetError(Exception):
    """Something that is needed is not there yet, as tailscaled after a boot; the message says what."""


class Addresses:
    """The addresses and names of this node, asked of tailscaled."""

    def __init__(self, localapi: LocalAPI) -> None:
        self._localapi = localapi

    async def names(self) -> list[str]:
        """The names of this node, the first label alone among them: MagicDNS takes it for the whole, and people type
        it. Raises NotYetError."""
        try:
            name = (await self._localapi.status()).name.removesuffix(".").lower()
        except Refusal as refusal:
            raise NotYetError(f"the names of the web site are not known: {refusal.message}") from None
        if not name:
            raise NotYetError("the names of the web site are not known: tailscaled gives this node no name")
        return [name, name.partition(".")[0]]

    async def sockets(self, addresses: Sequence[ListenAddress]) -> list[socket.socket]:
        """Listening sockets for all of these. Raises StartError and NotYetError, and leaves none open."""
        sockets: list[socket.socket] = []
        try:
            for address in addresses:
                for one in await self._resolve(address):
                    sockets.append(_listen(one))
        except BaseException:
            for sock in sockets:
                sock.close()
            raise
        return sockets

    async def _resolve(self, address: ListenAddress) -> list[ListenAddress]:
        if address.host != TAILNET:
            return [address]
        try:
            status = await self._localapi.status()
        except Refusal as refusal:
            raise NotYetError(f"cannot listen on {address}: {refusal.message}") from None
        if status.backend_state != "Running" or not status.addresses:
            raise NotYetError(f"cannot listen on {address}: tailscaled is {status.backend_state}")
        # A userspace daemon has no addresses in the kernel; it forwards to loopback.
        hosts = status.addresses if status.tun else ("127.0.0.1",)
        return [ListenAddress(host, address.port) for host in hosts]


def _listen(address: ListenAddress) -> socket.socket:
    """A listening socket. Raises StartError and NotYetError."""
    try:
        return bind(address.host, address.port)
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL and address.is_tailnet:
            raise NotYetError(
                f"cannot listen on {address}: it is not an address of this machine; does tailscaled run in "
                "userspace mode? then listen on 127.0.0.1"
            ) from None
        raise StartError(f"cannot listen on {address}: {error.strerror}") from None
