"""A policy on another machine, as executors ask it."""

from collections.abc import Callable
from typing import Protocol

from ..processing.observation_history import ObservationHistory


class Client(Protocol):
    """What openpi-client's `WebsocketClientPolicy` is."""

    def infer(self, obs: dict) -> dict: ...

    def get_server_metadata(self) -> dict: ...


class RemotePolicy:
    """A policy that `kivla serve` serves.

    ```python
    from openpi_client.websocket_client_policy import WebsocketClientPolicy

    policy = RemotePolicy(lambda: WebsocketClientPolicy("10.0.0.2", 8000))
    with RealTimeExecutor(policy, rate=50, way="rtc") as act:
        ...
    ```

    A connection is used again only after a whole answer. After an error (the server ends the connection with each) and
    while an answer is still to come, the next request makes a new one: it never gets the answer of another request, and
    a server that comes back is found.

    Args:
        connect: makes a connected client; observations have the keys that its server expects. Or a client that is
            connected: then an error is the end.

    Attributes:
        metadata: what the server says of itself.
        max_delay: the largest delay that the server's policy knows; None for any.
        observation_history: what the server's policy looks back on. Executors keep what was observed, and send with
            each observation its `past`.
        wrapping_angles: of each robot that the server's policy knows, the dimensions of actions that are angles which
            wrap, and their range.
    """

    def __init__(self, connect: Callable[[], Client] | Client):
        self._connect = connect if callable(connect) else None
        self._client: Client | None = connect() if callable(connect) else connect  # None: in use, or lost
        self.metadata = self._client.get_server_metadata()
        self.max_delay: int | None = self.metadata.get("max_delay")
        self.observation_history = ObservationHistory(
            self.metadata.get("history", 1), self.metadata.get("history_stride", 1)
        )
        self.wrapping_angles: list[dict[int, tuple[float, float]]] = [
            {dimension: (low, high) for dimension, low, high in of_robot}
            for of_robot in self.metadata.get("wrapping_angles", [])
        ]

    def __call__(self, observation: dict, rtc: str | None = None) -> dict:
        """Ask for a chunk.

        Args:
            observation: what was seen; for real-time chunking with `previous_actions` and `delay`.
            rtc: how the chunk is to continue the one before, "guidance" or "trained".

        Raises:
            ValueError: the server does not do it so, or another policy is served since the connection was lost.
            ConnectionError: the connection is lost, and there is no `connect`.
        """
        self._check_rtc(rtc)
        client, self._client = self._client, None
        client = client or self._reconnected()
        result = client.infer(observation)
        self._client = client
        return result

    def check_options(self, rtc: str | None = None, **others) -> None:
        """
        Raises:
            ValueError: the server does not do real-time chunking by this method.
            TypeError: there is another option: the server has its own.
        """
        if others:
            raise TypeError(
                f"A server takes no {next(iter(others))!r} with a request: it has its own. `kivla serve --help` lists "
                "what it can be started with."
            )
        self._check_rtc(rtc)

    def _check_rtc(self, method: str | None) -> None:
        offered = self.metadata.get("rtc")
        if method not in (None, offered):
            raise ValueError(
                f"The server does real-time chunking by {offered}, and was asked for {method}: "
                f'start it with `kivla serve --rtc {method}`, or choose another way (way="naive" needs nothing of it).'
            )

    def check_averaging(self) -> None:
        """
        Raises:
            ValueError: chunks of the server's policy have no mean.
        """
        if "ensemble" not in self.metadata.get("ways", ["ensemble"]):
            raise ValueError(
                f"The server's policy acts by the ways {', '.join(self.metadata['ways'])}: its actions have angles "
                'that wrap, or rotations, of which a mean is none. Choose another way of acting than "ensemble".'
            )

    def _reconnected(self) -> Client:
        if self._connect is None:
            raise ConnectionError(
                "The connection to the server is lost, or still waits for an earlier answer. Give RemotePolicy a "
                "function that connects, and it is made anew: RemotePolicy(lambda: WebsocketClientPolicy(...))."
            )
        client = self._connect()
        if (metadata := client.get_server_metadata()) != self.metadata:
            raise ValueError(
                f"The server serves another policy than at the beginning: {metadata}, and it was {self.metadata}. "
                "Begin anew with a new RemotePolicy."
            )
        return client


__all__ = ["RemotePolicy"]
