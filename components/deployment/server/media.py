"""Media of a request, as bytes: from a data URL, or over http(s) where the configuration allows it.

Nothing here opens a local file. An http(s) host is resolved once, every address it has must be public, and the
connection goes to the checked address, so that a second answer of the name server cannot redirect it (DNS rebinding).
Redirects are followed by hand and checked the same way; proxies from the environment are not used.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from urllib.parse import urljoin, urlsplit

import httpx

from ..config import ServerConfig
from .exchange import ApiError
from .payload import Media, read_base64, too_large

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Clouds answer instances on these, which the tables of private addresses do not (all) hold.
_CLOUD = [ipaddress.ip_network(net) for net in ("192.0.0.0/24", "168.63.129.16/32")]
# Relays to IPv4 networks, examples and segment routing: newer than the tables of this Python.
_RESERVED = [ipaddress.ip_network(net) for net in ("192.88.99.0/24", "3fff::/20", "5f00::/16")]
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_MOST_ADDRESSES = 4


def is_public(address: Address) -> bool:
    """Whether an address is on the public internet, looking into the ones that carry another inside. Loopback, private,
    link-local (with the clouds' metadata services), shared, multicast and reserved are not."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address in _NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if address.sixtofour is not None or address.teredo is not None or address.is_site_local:
            return False
    if address.is_multicast or address.is_reserved or address.is_unspecified:
        return False
    return address.is_global and not any(address in network for network in (*_CLOUD, *_RESERVED))


def _refuse(message: str, status: int = 400) -> ApiError:
    return ApiError(status, message, "messages")


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise too_large(limit)


def read_data_url(url: str, max_bytes: int) -> bytes:
    """The bytes of a base64 data URL. ApiError: 400 malformed, 413 too large."""
    header, comma, payload = url.partition(",")
    if not comma or not header.lower().endswith(";base64"):
        raise _refuse("a data URL must look like data:video/mp4;base64,AAAA…")
    return read_base64(payload, max_bytes)


class MediaReader:
    """Reads the media that requests name, within the limits of the configuration."""

    def __init__(self, config: ServerConfig, allowed: Callable[[Address], bool] = is_public) -> None:
        """Args: ``allowed``: which addresses may be connected to."""
        self._config, self._allowed = config, allowed

    async def read(self, media: Media) -> bytes:
        """The bytes of a request's media. ApiError: 400 not allowed or not reachable, 413 too large, 504 too slow."""
        config = self._config
        if not isinstance(media, str):
            return await asyncio.to_thread(read_base64, media, config.max_video_bytes)
        url, shown = media, _shortened(media)
        scheme = url[:16].partition(":")[0].lower()
        if scheme == "data":
            return await asyncio.to_thread(read_data_url, url, config.max_video_bytes)
        if scheme not in ("http", "https"):
            raise _refuse(f"'{shown}' is not taken: send the media as a data: URL (base64)")
        if not config.allow_http_media:
            words = "this server does not fetch http(s) media: send it as a data: URL (base64), or serve with"
            raise _refuse(f"{words} deployment.server.allow_http_media=true")
        if len(url) > 4096:
            raise _refuse("the media URL is longer than 4096 characters")
        try:
            async with asyncio.timeout(config.media_timeout_s):
                for _ in range(config.max_media_redirects + 1):
                    answer = await self._get_from_any(url, await self._check(url))
                    if isinstance(answer, bytes):
                        return answer
                    try:
                        url = urljoin(url, answer)
                    except ValueError:
                        raise _refuse(f"'{shown}' redirects to what is not a URL") from None
        except TimeoutError:
            raise _refuse(f"'{shown}' did not arrive within {config.media_timeout_s:g} s", 504) from None
        raise _refuse(f"'{_shortened(url)}' redirects more than {config.max_media_redirects} times")

    async def _get_from_any(self, url: str, addresses: list[Address]) -> bytes | str:
        """`_get` from the first of the host's addresses that can be connected to."""
        for address in addresses[:_MOST_ADDRESSES]:
            try:
                return await self._get(url, address)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failed = error
        raise _refuse(f"'{_shortened(url)}' could not be fetched ({type(failed).__name__})") from failed

    async def _check(self, url: str) -> list[Address]:
        """The addresses to connect to for ``url``; refuses what may not be reached."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            raise _refuse(f"'{_shortened(url)}' is not a URL") from None
        if parts.scheme not in ("http", "https") or not host:
            raise _refuse(f"'{_shortened(url)}' is not taken: only http and https addresses are fetched")
        if parts.username is not None or parts.password is not None:
            raise _refuse("a media URL must not hold a user name or password")
        host, domains = host.rstrip("."), self._config.allowed_media_domains
        if domains and not any(host == d or (d.startswith(".") and host.endswith(d)) for d in domains):
            raise _refuse(f"media from '{host[:80]}' is not allowed; allowed: {', '.join(domains)}")
        port = port or (443 if parts.scheme == "https" else 80)
        try:
            resolved = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
            addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in resolved]
        except (OSError, ValueError):
            raise _refuse(f"host '{host[:80]}' cannot be resolved") from None
        # One message for every refused address: the answer must not tell what exists in the private network.
        if not addresses or not all(map(self._allowed, addresses)):
            raise _refuse(f"'{host[:80]}' is not a public address; this server fetches from public addresses only")
        return list(dict.fromkeys(addresses))

    async def _get(self, url: str, address: Address) -> bytes | str:
        """One GET to the checked address: the body, or where it redirects to."""
        limit, shown, data = self._config.max_video_bytes, _shortened(url), bytearray()
        try:
            parsed = httpx.URL(url)
            headers = {"Host": parsed.netloc.decode("ascii"), "Accept-Encoding": "identity", "User-Agent": "vthink"}
            # TLS still checks the certificate against the name, not against the address.
            names = {"sni_hostname": parsed.raw_host.decode("ascii")}
            pinned = parsed.copy_with(host=str(address))
            async with (
                httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=10.0) as client,
                client.stream("GET", pinned, headers=headers, extensions=names) as response,
            ):
                if response.has_redirect_location:
                    return response.headers["location"]
                if response.status_code != 200:
                    raise _refuse(f"'{shown}' answered with HTTP {response.status_code}")
                if response.headers.get("content-encoding", "identity").lower() != "identity":
                    raise _refuse(f"'{shown}' is compressed for transfer, which is not taken")
                _check_size(int(response.headers.get("content-length", "0")), limit)
                async for piece in response.aiter_raw():
                    data += piece
                    _check_size(len(data), limit)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            raise
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise _refuse(f"'{shown}' could not be fetched ({type(error).__name__})") from error
        if not data:
            raise _refuse("the media is empty (0 bytes)")
        return bytes(data)


def _shortened(url: str) -> str:
    """An URL for a message: without a data URL's payload, without a query (which may hold a signature)."""
    return url[:80].split(",", 1)[0].split("?", 1)[0]
