"""openpi's policy server protocol: observations come in over a websocket, action chunks go out.

1. A plain GET of `/healthz` is answered "OK". Everything else becomes a websocket.
2. The server speaks first: one binary frame with its metadata, a map.
3. Then, one after the other: a binary frame with an observation, a binary frame with `actions` and, in milliseconds,
   `policy_timing` (`infer_ms`: the policy) and `server_timing` (`infer_ms`: with decoding and encoding; `wait_ms`: for
   its turn; `queue_depth`: the requests that were before it; `prev_total_ms`: all of the client's last one).
4. What goes wrong comes as a text frame, for people, and the connection is closed (1011; 1013 when the server is busy).

Frames are msgpack with arrays (`msgpack_numpy`).
"""

import asyncio
import hmac
import http
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import numpy as np

try:
    from websockets.asyncio.server import Request, Response, ServerConnection, serve
    from websockets.exceptions import ConnectionClosed
    from websockets.frames import CloseCode
    from websockets.protocol import State

    from .msgpack_numpy import packb, unpackb
except ImportError as error:
    raise ImportError("The policy server needs websockets and msgpack: `pip install 'kivla[server]'`.") from error

log = logging.getLogger(__name__)


class RequestRefused(Exception):
    """The client's doing, or the server is too busy; the text is for the client."""

    def __init__(self, text: str, code: CloseCode = CloseCode.INTERNAL_ERROR):
        super().__init__(text)
        self.code = code


class PolicyServer:
    """Serves one policy to several clients, one request at a time, in the order in which they come.

    Args:
        infer: an observation -> `{"actions": (H, D) array, ...}`. Runs in a thread of its own, and whatever it raises
            is logged with its traceback and sent to the client as text.
        read: a decoded message -> an observation; raises `ValueError` for what the client did wrong.
        metadata: what clients are told when they connect.
        api_key: what clients must send as `Authorization: Api-Key ...`; None for everybody.
        max_message_mb: longest message, in 10^6 bytes.
        max_connections: clients at a time.
        max_waiting: requests that may wait for their turn, beside the one that is running.
    """

    def __init__(
        self,
        infer: Callable[[dict], dict],
        read: Callable[[object], dict],
        metadata: dict | None = None,
        *,
        api_key: str | None = None,
        max_message_mb: float = 64,
        max_connections: int = 16,
        max_waiting: int = 8,
    ):
        self.infer = infer
        self.read = read
        self.metadata = metadata or {}
        self.api_key = api_key
        self.max_message_mb = max_message_mb
        self.max_connections = max_connections
        self.max_waiting = max_waiting
        self._busy: set[ServerConnection] = set()  # those whose request waits or runs

    @property
    def num_requests(self) -> int:
        """Requests that wait or run, and whose client is still there."""
        return sum(connection.state is State.OPEN for connection in self._busy)

    @asynccontextmanager
    async def listen(self, host: str = "127.0.0.1", port: int = 8000):
        """Serve while the context lasts; yields the port (a free one if `port` is 0).

        At the end nobody else may connect, the request that is running is answered, those that wait are refused, and
        every connection is closed.
        """
        self._turn = asyncio.Lock()
        self._is_stopping = False
        with ThreadPoolExecutor(1, thread_name_prefix="policy") as self._worker:
            self._server = await serve(
                self._handle,
                host,
                port,
                origins=[None],  # robots send no Origin; web pages that try to reach this machine's ports do
                compression=None,
                process_request=self._admit,
                max_size=int(self.max_message_mb * 1e6),
                max_queue=2,  # clients wait for their answer, so that there is no more to read
            )
            try:
                yield self._server.sockets[0].getsockname()[1]
            finally:
                self._is_stopping = True
                self._server.close(close_connections=False)
                idle = self._server.connections - self._busy
                await asyncio.gather(*(self._say_goodbye(connection) for connection in idle))
                await self._server.wait_closed()

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if self.api_key is not None:
            expected = f"Api-Key {self.api_key}".encode()
            given = request.headers.get_all("Authorization")
            if len(given) != 1 or not hmac.compare_digest(given[0].encode(errors="surrogateescape"), expected):
                text = "This server needs an API key: send the header 'Authorization: Api-Key <key>'.\n"
                return connection.respond(http.HTTPStatus.UNAUTHORIZED, text)
        if len(self._server.connections) >= self.max_connections:
            text = f"The server has {self.max_connections} clients, and takes no more (--max_connections).\n"
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, text)
        return None

    async def _handle(self, connection: ServerConnection) -> None:
        client, previous_ms = connection.remote_address, None
        log.info("%s connected", client)
        try:
            await connection.send(packb(self.metadata))
            while not self._is_stopping:
                message = await connection.recv()
                received = time.perf_counter()
                self._busy.add(connection)
                try:
                    reply = await self._reply(connection, message, received, previous_ms)
                    await connection.send(reply)
                finally:
                    self._busy.discard(connection)
                previous_ms = 1e3 * (time.perf_counter() - received)
            await self._say_goodbye(connection)
        except ConnectionClosed as closed:
            log.info("%s has gone: %s", client, closed)
        except RequestRefused as refusal:
            log.warning("%s was refused: %s", client, refusal)
            await self._fail(connection, str(refusal), refusal.code)
        except Exception as error:
            log.exception("%s: the policy failed", client)
            await self._fail(connection, f"{type(error).__name__}: {error}")

    async def _reply(
        self, connection: ServerConnection, message: bytes | str, received: float, previous_ms: float | None
    ) -> bytes:
        """The answer, when its turn has come."""
        queue_depth = self.num_requests - 1  # without this one
        if queue_depth > self.max_waiting:
            raise RequestRefused(
                f"The server is busy: {self.max_waiting} requests wait already (--max_waiting). Try again later.",
                CloseCode.TRY_AGAIN_LATER,
            )
        server_timing = {"queue_depth": queue_depth}
        if previous_ms is not None:
            server_timing["prev_total_ms"] = previous_ms
        async with self._turn:
            if self._is_stopping:
                raise RequestRefused("The server is stopping.", CloseCode.GOING_AWAY)
            if connection.state is not State.OPEN:
                raise RequestRefused("The client did not wait for its turn.")
            server_timing["wait_ms"] = 1e3 * (time.perf_counter() - received)
            return await asyncio.get_running_loop().run_in_executor(self._worker, self._answer, message, server_timing)

    def _answer(self, message: bytes | str, server_timing: dict) -> bytes:
        """Decode, infer, encode: all that takes time, away from the event loop."""
        start = time.perf_counter()
        try:
            if isinstance(message, str):
                raise ValueError("Observations are sent as binary frames of msgpack, this was a text frame.")
            observation = self.read(unpackb(message))
        except ValueError as error:
            raise RequestRefused(str(error)) from error
        before = time.perf_counter()
        result = self.infer(observation)
        policy_ms = 1e3 * (time.perf_counter() - before)
        if not np.isfinite(result["actions"]).all():
            raise FloatingPointError("The policy's actions are not all finite: they are not sent to a robot.")
        server_timing = {"infer_ms": 1e3 * (time.perf_counter() - start), **server_timing}
        return packb({**result, "server_timing": server_timing, "policy_timing": {"infer_ms": policy_ms}})

    async def _fail(self, connection: ServerConnection, text: str, code: CloseCode = CloseCode.INTERNAL_ERROR) -> None:
        try:
            await connection.send(text)
            await connection.close(code, "The error is in the frame before this one.")
        except ConnectionClosed:
            log.info("%s did not wait for its error", connection.remote_address)

    async def _say_goodbye(self, connection: ServerConnection) -> None:
        await connection.close(CloseCode.GOING_AWAY, "The server is stopping.")


__all__ = ["PolicyServer", "RequestRefused"]
