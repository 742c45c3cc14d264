"""This machine's address in the local network, and a temporary certificate for https under that address."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from datetime import UTC, datetime, timedelta

from iformer.dependencies import require
from iformer.errors import UserError

_DAYS = 30


def local_address() -> str:
    """Return this machine's IPv4 address on the default route.

    Raises:
        UserError: the machine is not connected to a network.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # documentation address; connecting UDP sends nothing
            address = str(probe.getsockname()[0])
        except OSError:
            address = "127.0.0.1"
    if ipaddress.ip_address(address).is_loopback:
        raise UserError("this machine is in no network; connect it, or give its address by --address")
    return address


def check_address(address: str) -> str:
    """Return a numeric IPv4 address in its usual form, without checking that this machine has the address.

    Raises:
        UserError: `address` is not a numeric IPv4 address, or is 0.0.0.0, which stands for all addresses.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        raise UserError(f"--address is '{address[:100]}'; expected numbers such as 192.168.1.20") from None
    if parsed.is_unspecified or parsed.version != 4:
        raise UserError(f"--address is {address}; expected the IPv4 address of one network of this machine")
    return str(parsed)


def make_tls(address: str) -> ssl.SSLContext:
    """Return TLS settings with a new key and certificate for an address. Neither is stored.

    Raises:
        MissingDependencyError: trustme is not installed.
    """
    trustme = require("trustme", extra="web")
    authority = trustme.CA(organization_name="iformer", organization_unit_name="made for this run")
    certificate = authority.issue_cert(address, not_after=datetime.now(UTC) + timedelta(days=_DAYS))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    certificate.configure_cert(context)
    return context
