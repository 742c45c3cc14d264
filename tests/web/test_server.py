"""The server of the page against hostile devices: nothing is read, kept or served that should not be."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from iformer.errors import UserError
from iformer.web import server as web_server
from iformer.web.server import HEADERS, MAX_BODY, MAX_CONNECTIONS_PER_CLIENT, MAX_TOKEN_BODY, PageServer, Resource

MESSAGES: list[Any] = []


def take(message: Any) -> str | None:
    MESSAGES.append(message)
    return None if message == {"kind": "good"} else "kind is unknown"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PageServer]:
    """A page, a runtime that everybody may read, and a network for sessions only."""
    (tmp_path / "network.onnx").write_bytes(bytes(range(256)) * 1024)
    MESSAGES.clear()
    resources = {
        "/": Resource(content=b"<!doctype html>", public=True),
        "/runtimes/1/a.wasm": Resource(content=b"\0asm", public=True, lasting=True),
        "/networks/0.onnx": Resource(content=tmp_path / "network.onnx"),
    }
    with PageServer(resources, on_message=take) as server:
        yield server


def ask(
    server: PageServer, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=10)
    if body is not None:
        headers = {"Content-Type": "application/json", **headers}
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), content


def session_of(server: PageServer) -> str:
    token = server.new_address().partition("#")[2]
    status, _, content = ask(server, "POST", "/session", {"token": token})
    assert status == 200
    session: str = json.loads(content)["session"]
    return session


def bearer(session: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {session}"}


def test_an_address_that_is_none_gets_an_answer(server: PageServer) -> None:
    with socket.create_connection((server.host, server.port), timeout=10) as connection:
        connection.sendall(b"GET http://[x/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    ("headers", "body", "expected"),
    [
        ("", rb'{"token": "\ud800"}', b"HTTP/1.1 403 "),
        ("Origin: http://[x\r\n", b"{}", b"HTTP/1.1 403 "),
        ("", b"{", b"HTTP/1.1 400 "),
    ],
)
def test_a_session_that_cannot_be_opened_gets_an_answer(
    server: PageServer, headers: str, body: bytes, expected: bytes
) -> None:
    server.new_address()
    head = f"POST /session HTTP/1.1\r\nHost: 127.0.0.1\r\n{headers}Content-Type: application/json\r\n"
    with socket.create_connection((server.host, server.port), timeout=10) as connection:
        connection.sendall(f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = b"".join(iter(lambda: connection.recv(4096), b""))  # ends: the connection is closed as asked
    assert answer.startswith(expected)


def test_a_client_that_sends_a_byte_now_and_then_is_cut_off(
    server: PageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_server, "_HEADER_SECONDS", 0.2)
    with socket.create_connection((server.host, server.port), timeout=0.02) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n")
        for _ in range(500):
            try:
                connection.sendall(b"a: b\r\n")
                if connection.recv(100) == b"":
                    return
            except TimeoutError:
                continue
            except ConnectionError:
                return
    pytest.fail("the connection is still open")


def test_every_answer_has_the_strict_headers(server: PageServer) -> None:
    answers = [
        ask(server, "GET", "/"),
        ask(server, "GET", "/nothing"),
        ask(server, "GET", "/networks/0.onnx"),
        ask(server, "DELETE", "/"),
        ask(server, "POST", "/session", b"{"),
    ]
    assert [status for status, _, _ in answers] == [200, 404, 403, 501, 400]
    for _, headers, _ in answers:
        assert HEADERS.items() <= headers.items()
        assert "unsafe-inline" not in headers["Content-Security-Policy"]
        assert "http" not in headers["Content-Security-Policy"]  # no third party
        assert headers["Server"] == "iformer"
    kinds = [headers["Content-Type"] for _, headers, _ in answers[:1]]
    assert kinds == ["text/html; charset=utf-8"]


def test_the_token_is_valid_once_and_opens_the_networks(server: PageServer) -> None:
    address = server.new_address()
    assert address.startswith(f"http://127.0.0.1:{server.port}/#")
    token = address.partition("#")[2]
    assert len(token) >= 20
    session = json.loads(ask(server, "POST", "/session", {"token": token})[2])["session"]
    assert ask(server, "POST", "/session", {"token": token})[0] == 403
    status, headers, content = ask(server, "GET", "/networks/0.onnx", **bearer(session))
    assert (status, len(content), content[:3]) == (200, 262144, b"\0\1\2")
    assert headers["Cache-Control"] == "no-store"
    assert ask(server, "HEAD", "/networks/0.onnx", **bearer(session))[1]["Content-Length"] == "262144"
    assert ask(server, "GET", "/runtimes/1/a.wasm")[1]["Content-Type"] == "application/wasm"
    server.new_address()
    assert ask(server, "GET", "/networks/0.onnx", **bearer(session))[0] == 200  # sessions outlive new addresses


@pytest.mark.parametrize("token", ["", "x", "é", None, 5, ["x"], {"x": 1}, "x" * 900])
def test_wrong_tokens(server: PageServer, token: Any) -> None:
    server.new_address()
    assert ask(server, "POST", "/session", {"token": token})[0] == 403
    assert ask(server, "POST", "/session", [token])[0] == 403
    for value in ("Bearer", "Bearer ", "Bearer x", "Basic eDp4", "Bearer \xe9"):
        assert ask(server, "GET", "/networks/0.onnx", Authorization=value)[0] == 403
    assert ask(server, "POST", "/message", {"kind": "good"})[0] == 403
    assert MESSAGES == []


@pytest.mark.parametrize(
    "path",
    [
        "/../../../../etc/passwd",
        "/networks/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/networks/0.onnx/../../x",
        "/networks/0.onnx%00.html",
        "file:///etc/passwd",
        "http://127.0.0.1/../etc/passwd",
        "/networks\\..\\..\\etc",
        "*",
    ],
)
def test_no_path_leaves_the_table(server: PageServer, path: str) -> None:
    session = session_of(server)
    assert ask(server, "GET", path, **bearer(session))[0] == 404


def test_messages_are_bounded_and_need_a_session(server: PageServer) -> None:
    session = bearer(session_of(server))
    assert ask(server, "POST", "/message", {"kind": "good"}, **session)[0] == 200
    status, _, content = ask(server, "POST", "/message", {"kind": "<script>alert(1)</script>\x1b[2J"}, **session)
    assert (status, json.loads(content)) == (400, {"error": "kind is unknown"})
    assert b"script" not in content
    assert len(MESSAGES) == 2
    deep = b"[" * 100_000
    for body, headers, expected in (
        (b"{", session, 400),
        (b"null", session, 400),
        (b"\xff\xfe", session, 400),
        (deep, session, 400),
        (b"{}", session | {"Content-Type": "text/plain"}, 415),
        (b"{}", session | {"Origin": "https://evil.example"}, 403),
        (b"{}", session | {"Host": "evil.example"}, 403),
        (b"{}", session | {"Content-Length": "-1"}, 411),
        (b"{}", session | {"Transfer-Encoding": "chunked"}, 411),
    ):
        assert ask(server, "POST", "/message", body, **headers)[0] == expected, (body[:20], headers)
    assert len(MESSAGES) == 2


def test_without_a_session_a_kilobyte_is_read(server: PageServer) -> None:
    server.new_address()
    assert ask(server, "POST", "/session", {"token": "x" * MAX_TOKEN_BODY})[0] == 413
    with socket.create_connection((server.host, server.port), timeout=10) as client:
        client.sendall(b"POST /message HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9000000\r\n\r\n")
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 403")  # before any of it has arrived


def test_a_body_of_a_gigabyte_is_refused_unread(server: PageServer) -> None:
    session = session_of(server)
    with socket.create_connection((server.host, server.port), timeout=10) as client:
        head = f"POST /message HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {session}\r\n"
        client.sendall(f"{head}Content-Type: application/json\r\nContent-Length: {1 << 30}\r\n\r\n".encode())
        answer = client.recv(1 << 16)
        assert answer.startswith(b"HTTP/1.1 413")
        assert f"at most {MAX_BODY} bytes".encode() in answer + client.recv(1 << 16)
    assert ask(server, "GET", "/")[0] == 200


@pytest.mark.parametrize("hundreds", [5, pytest.param(100, marks=pytest.mark.sweep)])
def test_ten_thousand_requests_leave_the_server_as_it_was(server: PageServer, hundreds: int) -> None:
    threads = threading.active_count()
    with socket.create_connection((server.host, server.port), timeout=10) as client:
        request = b"HEAD /x HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        reader = client.makefile("rb")
        refused = 0
        for _ in range(hundreds):
            client.sendall(request * 100)
            for _ in range(100):
                refused += reader.readline().startswith(b"HTTP/1.1 404")
                while reader.readline() not in (b"\r\n", b""):
                    pass
    assert refused == 100 * hundreds
    assert ask(server, "GET", "/")[0] == 200
    for _ in range(200):  # a timer that was cancelled ends a moment later
        if threading.active_count() <= threads + 4:
            break
        threading.Event().wait(0.02)
    assert threading.active_count() <= threads + 4
    assert MESSAGES == []


def test_open_connections_of_one_device_are_limited(server: PageServer) -> None:
    clients = [socket.create_connection((server.host, server.port), timeout=10) for _ in range(60)]
    closed = 0
    for client in clients[MAX_CONNECTIONS_PER_CLIENT:]:
        closed += client.recv(1) == b""
    assert closed == 60 - MAX_CONNECTIONS_PER_CLIENT
    for client in clients:
        client.close()
    for _ in range(200):  # the server notices that they are closed
        try:
            if ask(server, "GET", "/")[0] == 200:
                break
        except (ConnectionError, http.client.HTTPException):
            threading.Event().wait(0.02)
    assert ask(server, "GET", "/")[0] == 200


def test_noise_is_answered_or_dropped(server: PageServer, capsys: pytest.CaptureFixture[str]) -> None:
    for noise in (
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x1b]0;owned\x07\r\n\r\n",
        b"A" * 70_000,
    ):
        with socket.create_connection((server.host, server.port), timeout=10) as client:
            client.sendall(noise)
            client.shutdown(socket.SHUT_WR)
            try:
                answer = client.recv(1 << 16)
            except ConnectionError:
                answer = b""
            assert b"owned" not in answer
    assert ask(server, "GET", "/")[0] == 200
    assert capsys.readouterr() == ("", "")


def test_https_has_a_certificate_for_the_address() -> None:
    from iformer.web.certificate import make_tls

    page = {"/": Resource(content=b"page", public=True)}
    with PageServer(page, tls=make_tls("127.0.0.1")) as server:
        assert server.new_address().startswith("https://127.0.0.1:")
        with socket.create_connection((server.host, server.port)):  # says nothing, and delays nobody
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            connection = http.client.HTTPSConnection(server.host, server.port, timeout=10, context=context)
            connection.request("GET", "/")
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == (200, b"page")
            certificate = connection.sock.getpeercert(binary_form=True)
            connection.close()
        assert socket.inet_aton("127.0.0.1") in certificate
        with (
            pytest.raises(ssl.SSLCertVerificationError),
            socket.create_connection((server.host, server.port)) as plain,
        ):
            ssl.create_default_context().wrap_socket(plain, server_hostname="127.0.0.1")


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"cannot listen on 127\.0\.0\.1:{port}"):
            PageServer({}, port=port)
    with pytest.raises(UserError, match=r"cannot listen on 192\.0\.2\.1"):
        PageServer({}, host="192.0.2.1")
