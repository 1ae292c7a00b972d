"""A policy on another machine, as executors ask it."""

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

    policy = RemotePolicy(WebsocketClientPolicy("10.0.0.2", 8000))
    with RealTimeExecutor(policy, rate=50, way="rtc", max_delay=policy.max_delay) as act:
        ...
    ```

    Args:
        client: a connected client; observations have the keys that its server expects.

    Attributes:
        metadata: what the server says of itself.
        max_delay: the largest delay that the server's policy knows; None for any.
        observation_history: what the server's policy looks back on. Executors keep what was observed, and send with
            each observation its `past`.
    """

    def __init__(self, client: Client):
        self.client = client
        self.metadata = client.get_server_metadata()
        self.max_delay: int | None = self.metadata.get("max_delay")
        self.observation_history = ObservationHistory(
            self.metadata.get("history", 1), self.metadata.get("history_stride", 1)
        )

    def __call__(self, observation: dict, rtc: str | None = None) -> dict:
        """Ask for a chunk.

        Args:
            observation: what was seen; for real-time chunking with `previous_actions` and `delay`.
            rtc: how the chunk is to continue the one before, "guidance" or "trained".

        Raises:
            ValueError: the server does not do it so.
        """
        offered = self.metadata.get("rtc")
        if rtc is not None and rtc != offered:
            raise ValueError(
                f"The server does real-time chunking by {offered}, and was asked for {rtc}: "
                f'start it with `kivla serve --rtc {rtc}`, or choose another way (way="naive" needs nothing of it).'
            )
        return self.client.infer(observation)


__all__ = ["RemotePolicy"]
