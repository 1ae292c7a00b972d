"""openpi's policy server protocol: observations come in over a websocket, action chunks go out.

1. A plain GET of `/healthz` is answered "OK", and one of `/metrics` (ours) in Prometheus's text format. Everything
   else becomes a websocket.
2. The server speaks first: one binary frame with its metadata, a map.
3. Then, one after the other: a binary frame with an observation, a binary frame with `actions` and, in milliseconds,
   `policy_timing` (`infer_ms`: the policy; `batch_size`: how many requests it answered meanwhile) and `server_timing`
   (`infer_ms`: with decoding and encoding; `wait_ms`: for its turn; `queue_depth`: the requests that were before it;
   `prev_total_ms`: all of the client's last one). Where the policy clips, `clipped` says how many values, and how far
   they were out (see the pipeline).
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
from dataclasses import dataclass

from ..modeling_kivla.action_checks import LARGE_CLIPPED_SHARE, check_finite

try:
    from websockets.asyncio.server import Request, Response, ServerConnection, serve
    from websockets.exceptions import ConnectionClosed
    from websockets.frames import CloseCode
    from websockets.protocol import State

    from .batching import Batcher
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


@dataclass(frozen=True)
class _Request:
    """A message of a client, as it waits for its turn.

    Attributes:
        session: what makes its observations those that the policy takes.
        received: when it came, in seconds.
        server_timing: what the client will be told.
    """

    connection: ServerConnection
    message: bytes | str
    session: Callable[[dict], dict]
    received: float
    server_timing: dict


@dataclass(frozen=True)
class _Answer:
    """The frame for the client, and what is counted of it."""

    frame: bytes
    policy_seconds: float
    clipped: dict | None


class PolicyServer:
    """Serves one policy to several clients, in the order in which they come: one request at a time, or several at once.

    Args:
        infer: an observation -> `{"actions": (H, D) array, ...}`. Runs in a thread of its own, and whatever it raises
            is logged with its traceback and sent to the client as text; `RequestRefused` without a traceback.
        infer_together: a list of observations -> a list of what `infer` gives for each, in one pass. Where it raises,
            each of them is given to `infer` by itself, so that what is wrong with one does not concern the others.
        max_batch_size: most requests in a pass.
        max_batch_wait_ms: how long a request waits for others to join it. Those that wait for their turn anyway do.
        read: a decoded message -> an observation; raises `ValueError` for what the client did wrong.
        open_session: called for each client that connects: from its observations, as they were read, to those that the
            policy takes (`ClientMemory`); raises `ValueError` as `read` does. None takes them as they are.
        metadata: what clients are told when they connect.
        api_key: what clients must send as `Authorization: Api-Key ...`; None for everybody.
        max_message_mb: longest message, in 10^6 bytes.
        max_connections: clients at a time.
        max_waiting: requests that may wait for their turn, beside those that are running.
        send_timeout: seconds within which a client must have read what it is sent, but for what fits into the network's
            buffers; it is dropped otherwise. The next request is served meanwhile.
    """

    def __init__(
        self,
        infer: Callable[[dict], dict],
        read: Callable[[object], dict],
        metadata: dict | None = None,
        *,
        infer_together: Callable[[list[dict]], list[dict]] | None = None,
        max_batch_size: int = 1,
        max_batch_wait_ms: float = 0.0,
        open_session: Callable[[], Callable[[dict], dict]] | None = None,
        api_key: str | None = None,
        max_message_mb: float = 64,
        max_connections: int = 16,
        max_waiting: int = 8,
        send_timeout: float = 10.0,
    ):
        if max_batch_size < 1 or not 0 <= max_batch_wait_ms < math.inf:
            raise ValueError(
                "max_batch_size must be at least 1, and max_batch_wait_ms not negative; got "
                f"{max_batch_size} and {max_batch_wait_ms}."
            )
        if max_batch_size > 1 and infer_together is None:
            raise ValueError("A max_batch_size above 1 needs `infer_together`.")
        self.infer = infer
        self.infer_together = infer_together
        self.max_batch_size = max_batch_size
        self.max_batch_wait_ms = max_batch_wait_ms
        self.read = read
        self.open_session = open_session or (lambda: dict)
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

        At the end nobody else may connect, those that run are answered, those that wait are refused, and every
        connection is closed.
        """
        self._is_stopping = False
        with ThreadPoolExecutor(1, thread_name_prefix="policy") as worker:
            self._batcher = Batcher(
                worker,
                self._answer,
                refuse=self._refuse_late,
                max_size=self.max_batch_size,
                max_wait=1e-3 * self.max_batch_wait_ms,
                may_join=lambda size: size < len(self._server.connections),
            )
            batches = asyncio.create_task(self._batcher.run())
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
                batches.cancel()

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
        client, previous_ms, session = connection.remote_address, None, self.open_session()
        log.info("%s connected", client)
        try:
            await self._send(connection, packb(self.metadata))
            while not self._is_stopping:
                message = await connection.recv()
                received = time.perf_counter()
                self._busy.add(connection)
                try:
                    reply = await self._reply(connection, message, session, received, previous_ms)
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
        self,
        connection: ServerConnection,
        message: bytes | str,
        session: Callable[[dict], dict],
        received: float,
        previous_ms: float | None,
    ) -> bytes:
        """The answer, when its turn has come."""
        queue_depth = self.num_requests - 1  # without this one
        if queue_depth - max(self._batcher.num_running, 1) >= self.max_waiting:
            raise RequestRefused(
                f"The server is busy: {self.max_waiting} requests wait already (--max_waiting). Try again later.",
                CloseCode.TRY_AGAIN_LATER,
            )
        server_timing = {"queue_depth": queue_depth}
        if previous_ms is not None:
            server_timing["prev_total_ms"] = previous_ms
        answer = await self._batcher.submit(_Request(connection, message, session, received, server_timing))
        self.metrics.answers += 1
        self.metrics.policy_seconds.add(answer.policy_seconds)
        self.metrics.request_seconds.add(time.perf_counter() - received)
        if answer.clipped is not None:
            self._count_clipped(answer.clipped)
        return answer.frame

    def _refuse_late(self, request: _Request) -> None:
        """Of those whose turn has come: what nobody waits for any more."""
        if self._is_stopping:
            raise RequestRefused("The server is stopping.", CloseCode.GOING_AWAY)
        if request.connection.state is not State.OPEN:
            raise RequestRefused("The client did not wait for its turn.")

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

    def _answer(self, requests: list[_Request]) -> list[_Answer | Exception]:
        """Decode, infer, encode: all that takes time, away from the event loop.

        Returns:
            For each request its answer, or why there is none: what is wrong with one does not concern the others.
        """
        start = time.perf_counter()
        outcomes: list = [_outcome(self._decode, request) for request in requests]
        readable = [i for i, outcome in enumerate(outcomes) if not isinstance(outcome, Exception)]
        passes = self._infer([outcomes[i] for i in readable])
        for i, (result, timing) in zip(readable, passes, strict=True):
            wait_ms = 1e3 * (start - requests[i].received)
            server_timing = {**requests[i].server_timing, "wait_ms": wait_ms}
            outcomes[i] = _outcome(self._encode, result, timing, server_timing, start)
        return outcomes

    def _decode(self, request: _Request) -> dict:
        try:
            if isinstance(request.message, str):
                raise ValueError("Observations are sent as binary frames of msgpack, this was a text frame.")
            return request.session(self.read(unpackb(request.message)))
        except ValueError as error:
            raise RequestRefused(str(error)) from error

    def _infer(self, observations: list[dict]) -> list[tuple[dict | Exception, dict]]:
        """Each one's result or its exception, and the `policy_timing` of the pass that gave it."""
        if len(observations) > 1:
            together, timing = self._timed(self.infer_together, observations, len(observations))
            if not isinstance(together, Exception):
                return [(result, timing) for result in together]
            log.info("%d requests are answered one by one, because together: %s", len(observations), together)
        return [self._timed(self.infer, observation, 1) for observation in observations]

    def _timed(self, infer: Callable, observed: dict | list[dict], batch_size: int) -> tuple:
        before = time.perf_counter()
        outcome = _outcome(infer, observed)
        self.metrics.passes += 1
        return outcome, {"infer_ms": 1e3 * (time.perf_counter() - before), "batch_size": batch_size}

    def _encode(self, result: dict | Exception, timing: dict, server_timing: dict, start: float) -> _Answer:
        if isinstance(result, Exception):
            raise result
        check_finite(result["actions"][None])
        server_timing = {"infer_ms": 1e3 * (time.perf_counter() - start), **server_timing}
        frame = packb({**result, "server_timing": server_timing, "policy_timing": timing})
        return _Answer(frame, 1e-3 * timing["infer_ms"], result.get("clipped"))

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


def _outcome(function: Callable, *arguments):
    """What it returns, or the exception that it raises."""
    try:
        return function(*arguments)
    except Exception as error:
        return error


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]} ... ({len(text)} characters)"


__all__ = ["PolicyServer", "RequestRefused"]
