"""openpi's policy server protocol: observations come in over a websocket, action chunks go out.

1. A plain GET of `/healthz` is answered "OK", and one of `/metrics` (ours) in Prometheus's text format. Everything
   else becomes a websocket.
2. The server speaks first: one binary frame with its metadata, a map.
3. Then, one after the other: a binary frame with an observation, a binary frame with `actions` and, in milliseconds,
   `policy_timing` (`infer_ms`: the policy) and `server_timing` (`infer_ms`: with decoding and encoding; `wait_ms`: for
   its turn; `queue_depth`: the requests that were before it; `prev_total_ms`: all of the client's last one). Where the
   policy clips, `clipped` says how many values, and how far they were out (see the pipeline).
4. What goes wrong comes as a text frame, for people, and the connection is closed (1011; 1013 when the server is busy).

Frames are msgpack with arrays (`msgpack_numpy`).
"""

import asyncio
import hmac
import http
import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from ..modeling_kivla.action_checks import LARGE_CLIPPED_SHARE, check_finite

try:
    from websockets.asyncio.server import Request, Response, ServerConnection, serve
    from websockets.exceptions import ConnectionClosed
    from websockets.frames import CloseCode
    from websockets.protocol import State

    from .msgpack_numpy import packb, unpackb
    from .server_metrics import ServerMetrics
except ImportError as error:
    raise ImportError(
        "The policy server needs websockets and msgpack: `pip install 'kivla[server]'`.", name=error.name
    ) from error

log = logging.getLogger(__name__)

# Of a text for a client: some quote what the client sent, which may be long.
_MAX_TEXT = 2000
# Seconds between two warnings of clipped actions
_BETWEEN_WARNINGS = 60


class RequestRefused(Exception):
    """The client's doing, or the server is too busy; the text is for the client."""

    def __init__(self, text: str, code: CloseCode = CloseCode.INTERNAL_ERROR):
        super().__init__(text)
        self.code = code


class ClientNotReading(Exception):
    """The client was sent more than it reads; it was dropped."""


class PolicyServer:
    """Serves one policy to several clients, one request at a time, in the order in which they come.

    Args:
        infer: an observation -> `{"actions": (H, D) array, ...}`. Runs in a thread of its own, and whatever it raises
            is logged with its traceback and sent to the client as text; `RequestRefused` without a traceback.
        read: a decoded message -> an observation; raises `ValueError` for what the client did wrong.
        metadata: what clients are told when they connect.
        api_key: what clients must send as `Authorization: Api-Key ...`; None for everybody.
        max_message_mb: longest message, in 10^6 bytes.
        max_connections: clients at a time.
        max_waiting: requests that may wait for their turn, beside the one that is running.
        send_timeout: seconds within which a client must have read what it is sent, but for what fits into the network's
            buffers; it is dropped otherwise. The next request is served meanwhile.
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
        send_timeout: float = 10.0,
    ):
        self.infer = infer
        self.read = read
        self.metadata = metadata or {}
        self.api_key = api_key
        self.max_message_mb = max_message_mb
        self.max_connections = max_connections
        self.max_waiting = max_waiting
        self.send_timeout = send_timeout
        self.metrics = ServerMetrics()
        self._last_warning = -math.inf
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
                self.metrics.refused_connections += 1
                text = "This server needs an API key: send the header 'Authorization: Api-Key <key>'.\n"
                return connection.respond(http.HTTPStatus.UNAUTHORIZED, text)
        if request.path == "/metrics":
            text = self.metrics.as_text(len(self._server.connections), self.num_requests)
            return connection.respond(http.HTTPStatus.OK, text)
        if len(self._server.connections) >= self.max_connections:
            self.metrics.refused_connections += 1
            text = f"The server has {self.max_connections} clients, and takes no more (--max_connections).\n"
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, text)
        return None

    async def _handle(self, connection: ServerConnection) -> None:
        client, previous_ms = connection.remote_address, None
        log.info("%s connected", client)
        try:
            await self._send(connection, packb(self.metadata))
            while not self._is_stopping:
                message = await connection.recv()
                received = time.perf_counter()
                self._busy.add(connection)
                try:
                    reply = await self._reply(connection, message, received, previous_ms)
                finally:
                    self._busy.discard(connection)
                await self._send(connection, reply)  # a slow reader keeps nobody from their turn
                previous_ms = 1e3 * (time.perf_counter() - received)
            await self._say_goodbye(connection)
        except ConnectionClosed as closed:
            log.info("%s has gone: %s", client, closed)
        except ClientNotReading:
            self.metrics.slow_readers += 1
            log.warning("%s did not read within %g s, and was dropped", client, self.send_timeout)
        except RequestRefused as refusal:
            self.metrics.refusals += 1
            text = _shortened(str(refusal))
            log.warning("%s was refused: %s", client, text)
            await self._fail(connection, text, refusal.code)
        except Exception as error:
            self.metrics.failures += 1
            log.exception("%s: the policy failed", client)
            await self._fail(connection, _shortened(f"{type(error).__name__}: {error}"))

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
            loop = asyncio.get_running_loop()
            reply, policy_seconds, clipped = await loop.run_in_executor(
                self._worker, self._answer, message, server_timing
            )
        self.metrics.answers += 1
        self.metrics.policy_seconds.add(policy_seconds)
        self.metrics.request_seconds.add(time.perf_counter() - received)
        if clipped is not None:
            self._count_clipped(clipped)
        return reply

    def _count_clipped(self, clipped: dict) -> None:
        self.metrics.values += clipped["of"]
        self.metrics.clipped_values += clipped["values"]
        now = time.monotonic()
        if clipped["share"] > LARGE_CLIPPED_SHARE and now - self._last_warning > _BETWEEN_WARNINGS:
            self._last_warning = now
            log.warning(
                "%.0f %% of a chunk's values lay outside the range of the policy's data and were clipped, the worst by "
                "%.2g widths of the range, in dimension %s; of all values so far %.2g %%. Is it this policy's robot?",
                100 * clipped["share"],
                clipped["largest"],
                clipped["dimension"],
                100 * self.metrics.clipped_values / self.metrics.values,
            )

    def _answer(self, message: bytes | str, server_timing: dict) -> tuple[bytes, float, dict | None]:
        """Decode, infer, encode: all that takes time, away from the event loop.

        Returns:
            The encoded answer, the policy's seconds, and what was clipped.
        """
        start = time.perf_counter()
        try:
            if isinstance(message, str):
                raise ValueError("Observations are sent as binary frames of msgpack, this was a text frame.")
            observation = self.read(unpackb(message))
        except ValueError as error:
            raise RequestRefused(str(error)) from error
        before = time.perf_counter()
        result = self.infer(observation)
        policy_seconds = time.perf_counter() - before
        check_finite(result["actions"][None])
        server_timing = {"infer_ms": 1e3 * (time.perf_counter() - start), **server_timing}
        timing = {"server_timing": server_timing, "policy_timing": {"infer_ms": 1e3 * policy_seconds}}
        return packb({**result, **timing}), policy_seconds, result.get("clipped")

    async def _send(self, connection: ServerConnection, frame: bytes | str) -> None:
        """
        Raises:
            ConnectionClosed: the client has gone.
            ClientNotReading: it does not read; the connection is dropped.
        """
        try:
            async with asyncio.timeout(self.send_timeout):
                await connection.send(frame)
        except TimeoutError as timeout:
            connection.transport.abort()
            raise ClientNotReading from timeout

    async def _close(self, connection: ServerConnection, code: CloseCode, reason: str) -> None:
        """Even a client that does not read."""
        try:
            async with asyncio.timeout(self.send_timeout):
                await connection.close(code, reason)
        except TimeoutError:
            connection.transport.abort()

    async def _fail(self, connection: ServerConnection, text: str, code: CloseCode = CloseCode.INTERNAL_ERROR) -> None:
        try:
            await self._send(connection, text)
            await self._close(connection, code, "The error is in the frame before this one.")
        except (ConnectionClosed, ClientNotReading):
            log.info("%s did not wait for its error", connection.remote_address)

    async def _say_goodbye(self, connection: ServerConnection) -> None:
        await self._close(connection, CloseCode.GOING_AWAY, "The server is stopping.")


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]} ... ({len(text)} characters)"


__all__ = ["PolicyServer", "RequestRefused"]
