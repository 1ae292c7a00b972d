"""A policy on a server does what the executor asks for, or says that it does not."""

import pytest

from kivla.acting import RemotePolicy


class Client:
    def __init__(self, **metadata):
        self.metadata, self.seen = metadata, []

    def get_server_metadata(self) -> dict:
        return self.metadata

    def infer(self, obs: dict) -> dict:
        self.seen.append(obs)
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
    assert client.seen == []
