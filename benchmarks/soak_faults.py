"""What clients do wrong, one coroutine for each, and how the server has to take it."""

import asyncio
import re
import time
import urllib.request
from functools import partial

import msgpack
import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from kivla.serving.msgpack_numpy import packb, unpackb

API_KEY = "soak"
_KEY = {"Authorization": f"Api-Key {API_KEY}"}
_HANDSHAKE = (
    "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    f"Authorization: Api-Key {API_KEY}\r\n\r\n"
).encode()


class Unexpected(Exception):
    """The server did not do what it should."""


class Target:
    """A server, and what it should answer.

    Args:
        port: on this machine.
        observations: what clients may ask about.
        expected: (H, D) actions for each.
    """

    def __init__(self, port: int, observations: list[dict], expected: list[np.ndarray]):
        self.port, self.observations, self.expected = port, observations, expected

    def connect(self, headers: dict | None = None):
        headers = _KEY if headers is None else headers
        return connect(f"ws://127.0.0.1:{self.port}", compression=None, proxy=None, additional_headers=headers)

    def connection(self):
        """As a context: a client that has read the metadata."""
        return _Greeted(self)

    def request(self, index: int = 0, **changes) -> bytes:
        return packb({**self.observations[index], "timestamp": time.time(), **changes})

    async def ask(self, client: ClientConnection, index: int, pieces: int | None = None) -> dict:
        """The decoded answer; `pieces` of so many bytes make one message of several frames."""
        message = self.request(index)
        if pieces is not None:
            message = [message[start : start + pieces] for start in range(0, len(message), pieces)]
        await client.send(message)
        return self.decoded(await client.recv())

    def decoded(self, answer: bytes | str) -> dict:
        if isinstance(answer, str):
            raise Unexpected(f"refused: {answer}")
        return unpackb(answer)

    def is_right(self, answer: dict, index: int) -> bool:
        return answer["actions"].tobytes() == self.expected[index].tobytes()

    async def metrics(self) -> dict[str, float]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/metrics", headers=_KEY)
        text = await asyncio.to_thread(lambda: urllib.request.urlopen(request, timeout=60).read().decode())
        lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in lines}


class _Greeted:
    def __init__(self, target: Target):
        self._connecting = target.connect()

    async def __aenter__(self) -> ClientConnection:
        client = await self._connecting.__aenter__()
        await client.recv()
        return client

    async def __aexit__(self, *error) -> None:
        await self._connecting.__aexit__(*error)


# ------------------------------------------------------------------------------------------------- what is refused
async def _refused(target: Target, message: bytes | str | dict, reason: str) -> None:
    """The message (a dict: changes of a good request) is refused with a text that contains the reason."""
    async with target.connection() as client:
        await client.send(target.request(**message) if isinstance(message, dict) else message)
        told = await client.recv()
        if not isinstance(told, str) or not re.search(reason, told):
            raise Unexpected(f"expected a refusal with {reason!r}, got {told[:200]!r}")
        try:
            more = await client.recv()
        except ConnectionClosed as closed:
            if closed.rcvd is None or closed.rcvd.code != 1011:
                raise Unexpected(f"closed with {closed.rcvd}") from closed
        else:
            raise Unexpected(f"not closed, but {more[:200]!r}")


async def _made(target: Target, make, reason: str) -> None:
    await _refused(target, make(target), reason)


async def _too_long(target: Target) -> None:
    async with target.connection() as client:
        try:
            await client.send(bytes(1_100_000))
            await client.recv()
        except ConnectionClosed as closed:
            if closed.rcvd is None or closed.rcvd.code != 1009:
                raise Unexpected(f"closed with {closed.rcvd}") from closed
        else:
            raise Unexpected("a message that is too long was taken")


async def _without_key(target: Target, headers: dict) -> None:
    try:
        async with target.connect(headers):
            pass
    except InvalidStatus as refused:
        if refused.response.status_code != 401:
            raise Unexpected(f"HTTP status {refused.response.status_code}") from refused
    else:
        raise Unexpected("served without the key")


def _of_objects(_: Target) -> bytes:
    array = {b"__ndarray__": True, b"data": bytes(8), b"dtype": "|O", b"shape": [1]}
    return msgpack.packb({"images": [array], "text": "go"})


def _of_empty_maps(_: Target) -> bytes:
    return b"\xdc\x00\xc8" + (b"\xdc\x0f\xa0" + b"\x80" * 4000) * 200


def _image(shape: tuple, value: float = 0, dtype: str = "uint8") -> dict:
    return {"images": [np.full(shape, value, dtype), np.zeros((8, 8, 3), np.uint8)]}


# ----------------------------------------------------------------------------------------------- who is not polite
async def _leaves_while_waiting(target: Target) -> None:
    async with target.connection() as client:
        await client.send(target.request())
        client.transport.abort()


async def _raw(target: Target, sent: bytes, stay: float = 0.2) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", target.port)
    writer.write(sent)
    await writer.drain()
    await asyncio.sleep(stay)
    writer.transport.abort()


async def _half_open(target: Target) -> None:
    """Says nothing at all; the server hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
    writer.write(_HANDSHAKE[:30])
    await reader.read()  # the server gives up (websockets' open_timeout, 10 s)
    writer.transport.abort()


async def _leaves_in_mid_frame(target: Target) -> None:
    message = target.request()
    await _raw(target, _HANDSHAKE + _frame(message)[: len(message) // 2])


# ------------------------------------------------------------------------------------------- odd, but well-formed
async def _right(target: Target, answer: dict, index: int) -> None:
    if not target.is_right(answer, index):
        raise Unexpected("other actions than the pipeline's")


async def _in_fragments(target: Target) -> None:
    async with target.connection() as client:
        await _right(target, await target.ask(client, 3, pieces=1000), 3)


async def _many_at_once(target: Target) -> None:
    """Ask five times, and read only then: the answers come in the same order."""
    async with target.connection() as client:
        for index in range(5):
            await client.send(target.request(index))
        for index in range(5):
            await _right(target, target.decoded(await client.recv()), index)


async def _slow_reader(target: Target) -> None:
    """Reads its answer in small bites, over about half a second."""
    reader, writer = await asyncio.open_connection("127.0.0.1", target.port, limit=2**16)
    writer.write(_HANDSHAKE + _frame(target.request(7)))
    await reader.readuntil(b"\r\n\r\n")
    await _read_frame(reader)  # metadata
    await _right(target, target.decoded(await _read_frame(reader)), 7)
    writer.transport.abort()


async def _read_frame(reader: asyncio.StreamReader) -> bytes:
    opcode, length = await reader.readexactly(2)
    if opcode != 0x82:
        raise Unexpected(f"a frame that begins with {opcode:#x}")
    if length == 126:
        length = int.from_bytes(await reader.readexactly(2))
    payload = b""
    while len(payload) < length:
        payload += await reader.readexactly(min(32, length - len(payload)))
        await asyncio.sleep(0.02)
    return payload


def _frame(message: bytes) -> bytes:
    """One binary frame of a client, masked with zeros."""
    return b"\x82\xff" + len(message).to_bytes(8) + bytes(4) + message


FAULTS = {
    "never finishes its handshake": _half_open,
    "no msgpack": partial(_refused, message=b"\xc1garbage", reason="not msgpack"),
    "a message that was cut off": partial(_made, make=lambda t: t.request()[:-9], reason="not msgpack"),
    "a text frame": partial(_refused, message="hello", reason="this was a text frame"),
    "wrong keys": partial(_refused, message={"picture": 1}, reason="has the keys"),
    "a state with NaN": partial(_refused, message={"state": np.full(14, np.nan)}, reason="must be finite"),
    "an infinite state": partial(_refused, message={"state": np.full(14, np.inf)}, reason="must be finite"),
    "a state of another robot": partial(_refused, message={"state": np.zeros(6)}, reason="another robot"),
    "an image with NaN": partial(_refused, message=_image((8, 8, 3), np.nan, "float32"), reason="got nan"),
    "an image of one line": partial(_refused, message=_image((1, 9000, 3)), reason="4096 pixels"),
    "a path in place of an image": partial(_refused, message={"images": ["/etc/passwd"]}, reason="must be an array"),
    "an array of objects": partial(_made, make=_of_objects, reason="are refused"),
    "a million empty maps": partial(_made, make=_of_empty_maps, reason="maps and lists"),
    "an observation of an hour ago": partial(
        _made, make=lambda t: t.request(timestamp=time.time() - 3600), reason="ms old"
    ),
    "an observation of the future": partial(
        _made, make=lambda t: t.request(timestamp=time.time() + 3600), reason="ms old"
    ),
    "a time that is NaN": partial(_refused, message={"timestamp": float("nan")}, reason="nan ms old"),
    "an observation without a time": partial(_refused, message={"timestamp": None}, reason="got none"),
    "a message that is too long": _too_long,
    "a wrong key": partial(_without_key, headers={"Authorization": "Api-Key other"}),
    "no key": partial(_without_key, headers={}),
    "leaves while it waits": _leaves_while_waiting,
    "leaves in mid-frame": _leaves_in_mid_frame,
    "leaves in mid-handshake": partial(_raw, sent=_HANDSHAKE[:50]),
    "speaks no HTTP": partial(_raw, sent=b"\x16\x03\x01\x02\x00garbage\r\n\r\n"),
    "well-formed, in fragments": _in_fragments,
    "well-formed, five at once": _many_at_once,
    "well-formed, reads slowly": _slow_reader,
}

# Which of them get answers, and how many
ANSWERED = {"well-formed, in fragments": 1, "well-formed, five at once": 5, "well-formed, reads slowly": 1}

__all__ = ["ANSWERED", "API_KEY", "FAULTS", "Target", "Unexpected"]
