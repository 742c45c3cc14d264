"""Servers of streams on this machine, as stand-ins for cameras."""

from __future__ import annotations

import http.server
import io
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction

import av
import numpy as np
from PIL import Image

WIDTH, HEIGHT = 64, 48


def frame(number: int) -> Image.Image:
    """The picture of a frame: its red level is 10 times its number, modulo 250."""
    return Image.new("RGB", (WIDTH, HEIGHT), (10 * number % 250, 90, 120))


def number_of(image: Image.Image) -> int:
    """Return the number, modulo 25, of the frame that an image shows."""
    return round(float(np.asarray(image)[..., 0].mean()) / 10) % 25


def jpeg(number: int) -> bytes:
    """Return a frame as a JPEG file."""
    buffer = io.BytesIO()
    frame(number).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def encode(format: str, frames: int, *, start: int = 0, rate: int = 10) -> bytes:
    """Return the frames from `start` on as a file."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=format) as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.gop_size = rate
        for number in range(start, start + frames):
            picture = av.VideoFrame.from_image(frame(number))
            picture.pts, picture.time_base = number, Fraction(1, rate)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return buffer.getvalue()


Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


@contextmanager
def http_server(answers: dict[str, Answer], context: ssl.SSLContext | None = None) -> Iterator[str]:
    """Serve one function per path, over TLS if there is a context, and yield the address of the server."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with suppress(BrokenPipeError, ConnectionResetError, ssl.SSLError):
                answers[self.path.partition("?")[0]](self)

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
        yield f"http{'s' if context else ''}://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def contents(data: bytes, content_type: str) -> Answer:
    """Answer with a whole file."""

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", content_type)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    return answer


def motion_jpeg(
    frames: int, *, interval: float = 0.0, then_wait: threading.Event | None = None, damaged: int = -1
) -> Answer:
    """Answer with frames as cameras send them; then end, or send nothing more until an event is set.

    The JPEG of the frame `damaged` ends after its header.
    """

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        handler.end_headers()
        pause = threading.Event()
        for number in range(frames):
            picture = jpeg(number) if number != damaged else jpeg(number)[:100] + bytes(200)
            handler.wfile.write(
                b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(picture)
            )
            handler.wfile.write(picture + b"\r\n")
            handler.wfile.flush()
            pause.wait(interval)
        if then_wait is not None:
            then_wait.wait(60)

    return answer


@contextmanager
def rtsp_server(transport_stream: bytes) -> Iterator[str]:
    """Serve MPEG-TS over RTSP (RFC 2326, RTP interleaved) to one client, and yield the address."""

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as requests:
            while lines := list(iter(lambda: requests.readline().strip(), b"")):
                method = lines[0].split()[0]
                number = next(line for line in lines if line.lower().startswith(b"cseq"))
                headers, body = [b"RTSP/1.0 200 OK", number, b"Session: 1"], b""
                if method == b"DESCRIBE":
                    body = b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\n"
                    headers += [b"Content-Type: application/sdp", b"Content-Length: %d" % len(body)]
                if method == b"SETUP":
                    headers.append(b"Transport: RTP/AVP/TCP;unicast;interleaved=0-1")
                connection.sendall(b"\r\n".join([*headers, b"", body]))
                if method == b"PLAY":
                    size = 7 * 188
                    for index, start in enumerate(range(0, len(transport_stream), size)):
                        packet = struct.pack("!BBHII", 0x80, 33, index, 9000 * index, 1)
                        packet += transport_stream[start : start + size]
                        connection.sendall(struct.pack("!cBH", b"$", 0, len(packet)) + packet)
                    return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=[listener], daemon=True).start()
        yield f"rtsp://127.0.0.1:{listener.getsockname()[1]}/camera"
