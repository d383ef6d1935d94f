"""Public addresses and all others, by IANA's registries."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.egress import public

PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "9.255.255.255",
    "11.0.0.0",
    "54.187.174.169",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.0",
    "169.253.255.255",
    "169.255.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "192.0.1.0",
    "192.0.3.0",
    "192.88.98.255",
    "192.88.100.0",
    "192.167.255.255",
    "192.169.0.0",
    "198.17.255.255",
    "198.20.0.0",
    "198.51.99.255",
    "198.51.101.0",
    "203.0.112.255",
    "203.0.114.0",
    "223.255.255.255",
    "1.0.0.0",
    "2000::",
    "2001:200::",
    "2001:db7:ffff::",
    "2001:db9::",
    "2003::",
    "2600:1901:0:38d7::",
    "3ffe:ffff:ffff::",
    "3fff:1000::",
    "2001:4860:4860::8888",
    "::ffff:8.8.8.8",
    "::ffff:200.1.1.1",
    "64:ff9b::8.8.8.8",
    "64:ff9b::200.1.1.1",
]

NOT_PUBLIC = [
    # unspecified, and this network
    "0.0.0.0",
    "0.255.255.255",
    "::",
    # loopback
    "127.0.0.1",
    "127.255.255.255",
    "::1",
    # private, RFC 1918, and unique local, RFC 4193
    "10.0.0.0",
    "10.255.255.255",
    "172.16.0.0",
    "172.31.255.255",
    "192.168.0.0",
    "192.168.255.255",
    "fc00::",
    "fd00::1",
    "fd20:ce::254",
    # link-local, and the site-local of old
    "169.254.0.0",
    "169.254.169.254",
    "169.254.255.255",
    "fe80::",
    "fe80::1%eth0",
    "febf::1",
    "fec0::1",
    # shared, RFC 6598
    "100.64.0.0",
    "100.100.100.200",
    "100.127.255.255",
    # protocol assignments, benchmarks, documentation, discard
    "192.0.0.0",
    "192.0.0.192",
    "192.0.0.255",
    "192.88.99.0",
    "192.88.99.255",
    "198.18.0.0",
    "198.19.255.255",
    "192.0.2.0",
    "192.0.2.255",
    "198.51.100.0",
    "198.51.100.255",
    "203.0.113.0",
    "203.0.113.255",
    "100::1",
    "2001:db8::1",
    "2001:db8:ffff::",
    "3fff::1",
    "3fff:fff::",
    "5f00::1",
    # multicast, reserved, broadcast
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "ff02::1",
    "ff0e::1",
    "1fff:ffff::",
    "4000::",
    # an IPv4 address embedded
    "::ffff:0.0.0.0",
    "::ffff:10.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:224.0.0.1",
    "::10.0.0.1",
    "::fffe:8.8.8.8",
    "64:ff9b::1:8.8.8.8",
    "::8.8.8.8",
    "64:ff9b::10.0.0.1",
    "64:ff9b::127.0.0.1",
    "64:ff9b::169.254.169.254",
    "64:ff9b:1::8.8.8.8",
    "2002:a00:1::",
    "2002:7f00:1::",
    "2002:808:808::",
    "2002:ffff:ffff::",
    "2001::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:1ff:ffff::",
    # no address
    "",
    "localhost",
    "8.8.8.8.",
    "8.8.8",
    "134744072",
    "0x08080808",
    "010.8.8.8",
    "8.8.8.8/32",
    "[2600::]",
    "fe80::1%",
]


@pytest.mark.parametrize("address", PUBLIC)
def test_address_of_the_public_internet_is_public(address: str) -> None:
    assert public(address)


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_any_other_address_is_not_public(address: str) -> None:
    assert not public(address)


@given(st.ip_addresses())
def test_nothing_is_public_that_the_standard_library_keeps_from_the_internet(address: object) -> None:
    """Its table is another copy of the same registries."""
    parsed = ip_address(str(address))
    if parsed.is_private or parsed.is_link_local or parsed.is_loopback or parsed.is_multicast or parsed.is_unspecified:
        embedded = getattr(parsed, "ipv4_mapped", None)  # which some releases judge as a whole
        assert not public(str(parsed)) or (embedded is not None and public(str(embedded)))
