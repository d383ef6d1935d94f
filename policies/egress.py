"""Which addresses a call may connect to, unless its connection says ``private: true``."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

# The standard library's is_global is not used: it differs between patch releases, and counts multicast as global.
_NOT_PUBLIC_V4: Final = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # unspecified; 0.0.0.0 reaches this machine
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier-grade NAT, and internal in some clouds
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local: the metadata server, which issues tokens
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays, deprecated
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/3",  # multicast, reserved and broadcast
    )
)
#: All global unicast. The rest is private, local, multicast or unallocated.
_UNICAST_V6: Final = IPv6Network("2000::/3")
_NOT_PUBLIC_V6: Final = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments, with Teredo, which embeds an IPv4 address
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, deprecated; embeds an IPv4 address
        "3fff::/20",  # documentation
    )
)
#: Prefixes of 96 bits that embed an IPv4 address, to which the packets go: IPv4-mapped, and NAT64.
_EMBEDDING_V6: Final = (IPv6Network("::ffff:0:0/96"), IPv6Network("64:ff9b::/96"))


def public(address: str) -> bool:
    """Whether an IP address is on the public internet; False also for a text that is not an IP address.

    By IANA's special-purpose address registries for IPv4 and IPv6 (RFC 6890, RFC 8190), its IPv4 multicast registry
    (RFC 5771) and its IPv6 allocations (2000::/3, RFC 4291). An embedded IPv4 address is judged like a plain one:
    IPv4-mapped (RFC 4291) and NAT64 (RFC 6052). 6to4 (RFC 7526) and Teredo (RFC 4380) are always refused.
    """
    try:
        parsed: IPv4Address | IPv6Address = ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, IPv6Address):
        if not any(parsed in network for network in _EMBEDDING_V6):
            return parsed in _UNICAST_V6 and not any(parsed in network for network in _NOT_PUBLIC_V6)
        parsed = IPv4Address(parsed.packed[-4:])
    return not any(parsed in network for network in _NOT_PUBLIC_V4)
