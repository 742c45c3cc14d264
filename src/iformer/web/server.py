"""A server for one web page, over http on this machine or over https in the local network.

All content is listed in a table before the server starts, so requests cannot name other files of this machine. A
browser exchanges the one-time token in the address for a session. Requests without a session get neither networks
nor reference pictures, and their reports are refused.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import secrets
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from iformer.errors import UserError
from iformer.web.headers import HEADERS, TYPES

MAX_BODY = 1 << 25
"""Largest message of a session, in bytes. Larger messages are refused before they are read."""
MAX_TOKEN_BODY = 1 << 10
"""Largest body, in bytes, of a request without a session."""
MAX_CONNECTIONS = 64
MAX_CONNECTIONS_PER_CLIENT = 24
DEFAULT_PORT = 8765

_IDLE_SECONDS = 20
_HEADER_SECONDS = 40  # from the end of a response to the end of the next request's headers
_BODY_SECONDS = 30
_POLL_SECONDS = 0.1
_CHUNK = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Resource:
    """Content that is served under one path."""

    content: bytes | Path
    """The bytes, or the path of a file that is read at each request."""
    public: bool = False
    """Whether the content is served without a session, like the page itself and the runtimes."""
    lasting: bool = False
    """Whether browsers may cache the content, because its address contains a version."""


class PageServer:
    """A server that runs in its own thread. Used as a context manager, it stops at the end of the block.

    Attributes:
        host: address that the server listens on.
        port: port that the server listens on.
    """

    def __init__(
        self,
        resources: Mapping[str, Resource],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        on_message: Callable[[Any], str | None] | None = None,
        on_session: Callable[[], None] | None = None,
    ) -> None:
        """Open the port and listen; requests are not answered yet.

        Args:
            resources: content by path, such as `/style.css`; `/` is the page.
            host: address to listen on.
            port: port to listen on; 0 means any free one.
            tls: certificate and key; None means http.
            on_message: called with the JSON value of each message that a session posts to `/message`, one at a
                time. The function returns None, or an error message if the message is invalid.
            on_session: called when a browser has used the token.

        Raises:
            UserError: the port is in use, or `host` is not an address of this machine.
        """
        handler = type("Handler", (_Handler,), {"page": self})
        try:
            self._server = _Server((host, port), handler)
        except OSError as error:
            raise UserError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
        self._server.tls = tls
        self.resources = dict(resources)
        self.host, self.port = host, int(self._server.server_address[1])
        self.on_message, self.on_session = on_message, on_session
        self._scheme = "http" if tls is None else "https"
        self._lock = threading.Lock()
        self._message_lock = threading.Lock()
        self._token: str | None = None
        self._sessions: set[str] = set()
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_POLL_SECONDS,), daemon=True)

    def __enter__(self) -> PageServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def new_address(self) -> str:
        """Return the page's address with a new token. Earlier tokens become invalid; sessions stay valid."""
        with self._lock:
            self._token = secrets.token_urlsafe(16)
            # browsers do not send the part after the #, so it is not logged, and link previews do not use it up
            return f"{self._scheme}://{self.host}:{self.port}/#{self._token}"

    def open_session(self, token: str) -> str | None:
        """Exchange the token for a new session's name. Return None if the token is wrong or was used before."""
        with self._lock:
            if self._token is None or not hmac.compare_digest(
                self._token.encode(), token.encode(errors="replace")
            ):
                return None
            self._token = None
            session = secrets.token_urlsafe(32)
            self._sessions.add(session)
        if self.on_session is not None:
            self.on_session()
        return session

    def is_session(self, session: str) -> bool:
        """Return whether `session` is the name of an open session."""
        return any(hmac.compare_digest(known.encode(), session.encode()) for known in tuple(self._sessions))

    def receive(self, content: bytes) -> str | None:
        """Parse a JSON message and pass it to `on_message`, one at a time. Return None, or an error message."""
        if self.on_message is None:
            return "this page sends no messages"
        with self._message_lock:  # only one large message is in memory at a time
            value = _json(content)
            return "expected JSON" if value is None else self.on_message(value)

    def is_own_name(self, host: str) -> bool:
        """Return whether a Host header names this machine. Other names indicate a DNS rebinding attack."""
        name = urlsplit(f"//{host}").hostname
        if name == self.host:
            return True
        # any port, because `adb reverse` and chrome://inspect forward another port of the phone
        with suppress(ValueError, TypeError):
            return ipaddress.ip_address(self.host).is_loopback and (
                name == "localhost" or ipaddress.ip_address(name or "").is_loopback
            )
        return False


def _json(content: bytes) -> Any:
    """Parse JSON. Return None for `null` and for text that is not JSON."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True  # Ctrl-C does not wait for a phone
    block_on_close = False
    request_queue_size = 64
    tls: ssl.SSLContext | None = None

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        self._open: Counter[str] = Counter()
        self._lock = threading.Lock()
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection, or close the connection if too many are open."""
        client = client_address[0]
        with self._lock:
            full = self._open.total() >= MAX_CONNECTIONS or self._open[client] >= MAX_CONNECTIONS_PER_CLIENT
            if not full:
                self._open[client] += 1
        if full:
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection in its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._open -= Counter([client_address[0]])  # drops addresses without open connections

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection. The TLS handshake runs in this thread, so that slow clients do not delay others."""
        request.settimeout(_IDLE_SECONDS)
        if self.tls is None:
            super().finish_request(request, client_address)
            return
        with self.tls.wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: a client that disconnects or does not speak TLS is not an error of this program."""


class _Handler(BaseHTTPRequestHandler):
    page: PageServer
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_SECONDS

    def handle_one_request(self) -> None:
        """Serve one request. If its headers take longer than `_HEADER_SECONDS`, the connection is cut."""
        self._waiting = threading.Timer(_HEADER_SECONDS, self._cut)
        self._waiting.daemon = True
        self._waiting.start()
        try:
            super().handle_one_request()
        finally:
            self._waiting.cancel()

    def parse_request(self) -> bool:
        """Read the headers; refuse an invalid path."""
        parsed = super().parse_request()
        self._waiting.cancel()
        try:
            return parsed and bool(urlsplit(self.path))
        except ValueError:
            self.send_error(HTTPStatus.BAD_REQUEST)
            return False

    def _cut(self) -> None:
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def do_GET(self) -> None:
        """Send a resource."""
        self._send_resource(body=True)

    def do_HEAD(self) -> None:
        """Send a resource's headers."""
        self._send_resource(body=False)

    def do_POST(self) -> None:
        """Open a session or receive a message."""
        self._keep_open = not self.close_connection
        self.close_connection = True  # unless the body is read
        path = urlsplit(self.path).path
        if not self._is_allowed():
            return
        if path == "/session":
            content = self._read_body(MAX_TOKEN_BODY)
            if content is None:
                return
            message = _json(content)
            token = message.get("token") if isinstance(message, dict) else None
            session = self.page.open_session(token) if isinstance(token, str) else None
            if session is not None:
                self._send(HTTPStatus.OK, json.dumps({"session": session}).encode())
            elif message is None:
                self._refuse(HTTPStatus.BAD_REQUEST, "expected JSON")
            else:
                self._refuse(HTTPStatus.FORBIDDEN, "the address is wrong or was used before")
        elif path != "/message":
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")
        elif self._has_session() and (content := self._read_body(MAX_BODY)) is not None:
            wrong = self.page.receive(content)
            if wrong is None:
                self._send(HTTPStatus.OK, b"{}")
            else:
                self._refuse(HTTPStatus.BAD_REQUEST, wrong)

    def _send_resource(self, *, body: bool) -> None:
        if not self._is_allowed():
            return
        path = urlsplit(self.path).path
        resource = self.page.resources.get(path)
        if resource is None:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page", body=body)
            return
        if not resource.public and not self._has_session():
            return
        kind = TYPES.get(Path("index.html" if path == "/" else path).suffix, "application/octet-stream")
        if isinstance(resource.content, bytes):
            self._send(HTTPStatus.OK, resource.content, kind, lasting=resource.lasting, body=body)
            return
        try:
            with open(resource.content, "rb") as file:
                length = resource.content.stat().st_size
                self._start(HTTPStatus.OK, length, kind, lasting=resource.lasting)
                left = length if body else 0
                while left and (chunk := file.read(min(_CHUNK, left))):
                    self.wfile.write(chunk)
                    left -= len(chunk)
                if left:
                    self.close_connection = True
        except FileNotFoundError:
            self._refuse(HTTPStatus.NOT_FOUND, "the file was removed", body=body)

    def _is_allowed(self) -> bool:
        """Return whether Host and Origin name this server. If not, refuse the request: another site sent it."""
        origin = self.headers.get("Origin")
        with suppress(ValueError):
            hosts = [self.headers.get("Host", "")] + ([urlsplit(origin).netloc] if origin else [])
            if all(self.page.is_own_name(host) for host in hosts):
                return True
        self._refuse(HTTPStatus.FORBIDDEN, "this server has another name")
        return False

    def _has_session(self) -> bool:
        scheme, _, session = self.headers.get("Authorization", "").partition(" ")
        if scheme == "Bearer" and self.page.is_session(session):
            return True
        self._refuse(HTTPStatus.FORBIDDEN, "open the page by the address that the terminal shows")
        return False

    def _read_body(self, limit: int) -> bytes | None:
        """Return the body of a JSON request. None: the body is refused or too slow, and the connection ends."""
        length = self.headers.get("Content-Length", "")
        if "Transfer-Encoding" in self.headers or not (length.isascii() and length.isdigit() and len(length) < 20):
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "Content-Length is missing")
            return None
        if int(length) > limit:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {limit} bytes are taken")
            return None
        if self.headers.get_content_type() != "application/json":
            self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "expected application/json")
            return None
        content, end = bytearray(), time.monotonic() + _BODY_SECONDS
        while len(content) < int(length):
            chunk = self.rfile.read1(min(_CHUNK, int(length) - len(content)))
            if not chunk or time.monotonic() > end:
                return None
            content += chunk
        self.close_connection = not self._keep_open
        return bytes(content)

    def _refuse(self, status: HTTPStatus, reason: str, *, body: bool = True) -> None:
        self._send(status, json.dumps({"error": reason}).encode(), body=body)

    def _send(
        self,
        status: HTTPStatus,
        content: bytes,
        kind: str = "application/json",
        *,
        lasting: bool = False,
        body: bool = True,
    ) -> None:
        self._start(status, len(content), kind, lasting=lasting)
        if body:
            self.wfile.write(content)

    def _start(self, status: HTTPStatus, length: int, kind: str, *, lasting: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        self.send_header("Cache-Control", "private, max-age=86400, immutable" if lasting else "no-store")
        if self.close_connection:
            self.send_header("Connection", "close")
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.end_headers()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse a request that http.server cannot parse, without repeating any of its text."""
        self.close_connection = True
        self._refuse(HTTPStatus(code), HTTPStatus(code).phrase)

    def version_string(self) -> str:
        """Return the value of the Server header."""
        return "iformer"

    def log_message(self, format: str, *arguments: object) -> None:
        """Log nothing, so that text from a device never reaches the terminal."""
