"""A policy on a server does what the executor asks for, or says that it does not."""

import threading

import pytest

from kivla.acting import RemotePolicy


class Client:
    def __init__(self, **metadata):
        self.metadata, self.seen = metadata, []

    def get_server_metadata(self) -> dict:
        return self.metadata

    def infer(self, obs: dict) -> dict:
        self.seen.append(obs)
        if "fail" in obs:
            raise ConnectionResetError("the server is gone")
        if "wait" in obs:
            obs["wait"].wait(60)
        return {"actions": "a chunk"}


def test_observations_go_to_the_server_as_they_are():
    client = Client(rtc="trained", max_delay=4)
    policy = RemotePolicy(client)
    assert policy({"prompt": "go", "delay": 2}, rtc="trained") == policy({"prompt": "go"}) == {"actions": "a chunk"}
    assert client.seen == [{"prompt": "go", "delay": 2}, {"prompt": "go"}] and policy.max_delay == 4


@pytest.mark.parametrize("offered", [{}, {"rtc": None}, {"rtc": "trained"}])
def test_what_the_server_does_not_do_is_said(offered):
    client = Client(**offered)
    with pytest.raises(ValueError, match="start it with `kivla serve --rtc guidance`"):
        RemotePolicy(client)({"prompt": "go"}, rtc="guidance")
    with pytest.raises(ValueError, match="start it with `kivla serve --rtc guidance`"):
        RemotePolicy(client).check_options(rtc="guidance")
    with pytest.raises(TypeError, match="A server takes no 'num_steps' with a request: it has its own"):
        RemotePolicy(client).check_options(num_steps=5)
    assert client.seen == []


def test_what_the_server_says_of_angles_is_known():
    assert RemotePolicy(Client(wrapping_angles=[[[4, -180, 180]], []])).wrapping_angles == [{4: (-180, 180)}, {}]
    assert RemotePolicy(Client()).wrapping_angles == []


def connecting(clients: list[Client], *metadata: dict):
    """A function that connects, and keeps each client; what the server says of itself, connection by connection."""
    of_connections = iter(metadata)

    def connect() -> Client:
        clients.append(Client(**next(of_connections)))
        return clients[-1]

    return connect


def test_a_lost_connection_is_made_anew():
    clients: list[Client] = []
    policy = RemotePolicy(connecting(clients, {"rtc": "trained"}, {"rtc": "trained"}))
    policy({"step": 0})
    with pytest.raises(ConnectionResetError):
        policy({"step": 1, "fail": True})
    policy({"step": 2})
    policy({"step": 3})
    assert [[obs["step"] for obs in client.seen] for client in clients] == [[0, 1], [2, 3]]


def test_a_server_that_is_still_away_is_asked_again():
    clients: list[Client] = []

    def connect() -> Client:
        if len(clients) in (1, 2):
            clients.append(None)
            raise ConnectionRefusedError
        clients.append(Client())
        return clients[-1]

    policy = RemotePolicy(connect)
    with pytest.raises(ConnectionResetError):
        policy({"fail": True})
    for _ in range(2):
        with pytest.raises(ConnectionRefusedError):
            policy({})
    assert policy({}) == {"actions": "a chunk"}


def test_no_request_waits_on_the_connection_of_another():
    """Otherwise it would get the answer that was meant for the other one."""
    clients: list[Client] = []
    policy, come = RemotePolicy(connecting(clients, {}, {})), threading.Event()
    hanging = threading.Thread(target=policy, args=({"wait": come},))
    hanging.start()
    while not clients[0].seen:
        pass
    assert policy({}) == {"actions": "a chunk"} and len(clients) == 2
    come.set()
    hanging.join()
    assert policy({}) == {"actions": "a chunk"}, "both connections are free again"


def test_another_policy_is_not_taken_for_the_one_before():
    policy = RemotePolicy(connecting([], {"chunk_size": 10}, {"chunk_size": 50}))
    with pytest.raises(ConnectionResetError):
        policy({"fail": True})
    with pytest.raises(ValueError, match=r"serves another policy than at the beginning: .*50.* it was .*10"):
        policy({})


def test_a_client_alone_cannot_be_made_anew():
    policy = RemotePolicy(Client())
    with pytest.raises(ConnectionResetError):
        policy({"fail": True})
    with pytest.raises(ConnectionError, match="Give RemotePolicy a function that connects"):
        policy({})


def test_what_has_no_mean_is_not_averaged():
    RemotePolicy(Client(ways=["naive", "ensemble"])).check_averaging()
    RemotePolicy(Client()).check_averaging()
    with pytest.raises(ValueError, match="acts by the ways sync, naive: its actions have angles that wrap"):
        RemotePolicy(Client(ways=["sync", "naive"])).check_averaging()
