"""The policy server over real sockets, with a policy that is a line; whoever misbehaves, the next client is served."""

import asyncio
import http.client
import re
import threading
from contextlib import AsyncExitStack

import msgpack
import numpy as np
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as websocket
from websockets.exceptions import ConnectionClosed, InvalidStatus

from kivla.serving.msgpack_numpy import packb, unpackb
from kivla.serving.policy_server import PolicyServer
from tests.helpers.patience import PATIENCE


class Policy:
    """Answers a number with a chunk full of it. While it is `held` it does not answer at all."""

    def __init__(self):
        self.seen, self.running, self.most_running = [], 0, 0
        self._may_answer = threading.Event()
        self.release()

    def hold(self):
        self._may_answer.clear()

    def release(self):
        self._may_answer.set()

    def __call__(self, observation: dict) -> dict:
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        self.seen.append(observation["n"])
        assert self._may_answer.wait(60)
        self.running -= 1
        return {"actions": np.full((2, 3), 1 / np.float32(observation["n"]))}


def read(request) -> dict:
    if not isinstance(request, dict) or not isinstance(request.get("n"), int):
        raise ValueError("'n' must be a whole number.")
    return request


def connect(port: int, **options):
    return websocket(f"ws://127.0.0.1:{port}", compression=None, proxy=None, **options)


async def ask(client: ClientConnection, observation) -> dict:
    await client.send(packb(observation))
    return unpackb(await client.recv())


async def is_served(port: int) -> None:
    """A new client gets what it asks for."""
    async with connect(port) as client:
        assert unpackb(await client.recv()) == {"policy": "test"}
        assert (await ask(client, {"n": 4}))["actions"].tolist() == [[0.25] * 3] * 2


async def until(condition) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.001)


async def refusal(client: ClientConnection) -> tuple[str, int]:
    """The text frame and the code with which a server closes."""
    text = await client.recv()
    assert isinstance(text, str), text
    with pytest.raises(ConnectionClosed) as closed:
        await client.recv()
    return text, closed.value.rcvd.code


def run(scenario, policy=None, **options) -> None:
    """Run `scenario(server, port)` beside a server, and then look whether the next client is served."""

    async def everything():
        server = PolicyServer(policy or Policy(), read, {"policy": "test"}, **options)
        async with server.listen(port=0) as port:
            await scenario(server, port)
            await until(lambda: server.num_requests == 0)
            if server.api_key is None:
                await is_served(port)

    asyncio.run(everything())


def test_metadata_first_then_one_answer_for_each_request():
    async def scenario(server, port):
        async with connect(port) as client:
            metadata = await client.recv()
            assert isinstance(metadata, bytes) and unpackb(metadata) == {"policy": "test"}
            first = await ask(client, {"n": 2})
            assert first["actions"].dtype == np.float32 and first["actions"].tolist() == [[0.5] * 3] * 2
            assert set(first) == {"actions", "server_timing", "policy_timing"}
            assert set(first["server_timing"]) == {"infer_ms", "wait_ms", "queue_depth"}
            assert first["server_timing"]["queue_depth"] == 0
            assert first["server_timing"]["infer_ms"] >= first["policy_timing"]["infer_ms"] > 0
            second = await ask(client, {"n": 4})
            assert second["actions"].tolist() == [[0.25] * 3] * 2
            assert second["server_timing"]["prev_total_ms"] >= first["server_timing"]["infer_ms"]

    run(scenario)


def test_several_clients_one_request_at_a_time_in_the_order_in_which_they_come():
    policy = Policy()

    async def scenario(server, port):
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(connect(port)) for _ in range(5)]
            policy.hold()
            for n, client in enumerate(clients, 1):
                await client.recv()
                await client.send(packb({"n": n}))
                await until(lambda n=n: server.num_requests == n)
            policy.release()
            answers = [unpackb(await client.recv()) for client in clients]
        assert policy.seen == [1, 2, 3, 4, 5] and policy.most_running == 1
        for n, answer in enumerate(answers, 1):
            assert answer["actions"][0, 0] == 1 / np.float32(n)
            assert answer["server_timing"]["queue_depth"] == n - 1
            assert (answer["server_timing"]["wait_ms"] > 0) and answer["server_timing"]["infer_ms"] > 0

    run(scenario, policy)


def test_health_is_known_while_the_policy_thinks():
    policy = Policy()

    def health(port: int, path: str = "/healthz") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()

    async def scenario(server, port):
        async with connect(port) as client:
            await client.recv()
            policy.hold()
            await client.send(packb({"n": 1}))
            await until(lambda: policy.running)
            assert await asyncio.to_thread(health, port) == (200, b"OK\n")
            assert (await asyncio.to_thread(health, port, "/other"))[0] == 426, "everything else is a websocket"
            assert policy.running
            policy.release()
            assert "actions" in unpackb(await client.recv())

    run(scenario, policy)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("hello", "sent as binary frames of msgpack, this was a text frame"),
        (b"\xc1", "not msgpack"),
        (b"", "not msgpack"),
        (packb({"n": np.zeros(9)})[:-3], "not msgpack"),
        (packb({"n": "one"}), "'n' must be a whole number"),
        (packb([1, 2]), "'n' must be a whole number"),
        (
            b"\x81\xa1n\x84\xc4\x0b__ndarray__\xc3\xc4\x04data\xc4\x01\x01\xc4\x05dtype\xa2|O\xc4\x05shape\x91\x01",
            r"arrays of type '\|O' are refused",
        ),
    ],
    ids=["text frame", "garbage", "empty", "truncated", "wrong value", "a list", "array of objects"],
)
def test_what_a_client_did_wrong_is_told(message, text):
    policy = Policy()

    async def scenario(server, port):
        async with connect(port) as client:
            await client.recv()
            await client.send(message)
            told, code = await refusal(client)
            assert code == 1011
            with pytest.raises(ValueError, match=text):
                raise ValueError(told)
        assert policy.seen == []

    run(scenario, policy)


def test_a_policy_that_fails_is_told_without_its_traceback(caplog):
    async def scenario(server, port):
        async with connect(port) as client:
            await client.recv()
            await ask(client, {"n": 2})
            await client.send(packb({"n": 2, "fail": True}))
            assert await refusal(client) == ("RuntimeError: no such weights", 1011)

    policy = Policy()

    def failing(observation):
        if "fail" in observation:
            raise RuntimeError("no such weights")
        return policy(observation)

    run(scenario, failing)
    assert "Traceback" in caplog.text, "whoever runs the server sees where"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_actions_that_are_not_finite_never_leave(value):
    policy = Policy()

    def failing(observation):
        result = policy(observation)
        if "fail" in observation:
            result["actions"][1, 2] = value
        return result

    async def scenario(server, port):
        async with connect(port) as client:
            await client.recv()
            await client.send(packb({"n": 1, "fail": True}))
            told, code = await refusal(client)
            assert "actions are not all finite" in told and code == 1011

    run(scenario, failing)


def test_a_busy_server_says_so():
    policy = Policy()

    async def scenario(server, port):
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(connect(port)) for _ in range(4)]
            policy.hold()
            for n, client in enumerate(clients[:3], 1):
                await client.recv()
                await client.send(packb({"n": n}))
                await until(lambda n=n: server.num_requests == n)
            await clients[3].recv()
            await clients[3].send(packb({"n": 4}))
            told, code = await refusal(clients[3])
            assert told.startswith("The server is busy: 2 requests wait already (--max_waiting).") and code == 1013
            policy.release()
            for client in clients[:3]:
                assert "actions" in unpackb(await client.recv())
        assert policy.seen == [1, 2, 3]

    run(scenario, policy, max_waiting=2)


def test_a_client_that_has_gone_leaves_its_place():
    policy = Policy()

    async def scenario(server, port):
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(connect(port)) for _ in range(3)]
            policy.hold()
            for n, client in enumerate(clients[:2], 1):
                await client.recv()
                await client.send(packb({"n": n}))
                await until(lambda n=n: server.num_requests == n)
            clients[1].transport.abort()
            await until(lambda: server.num_requests == 1)
            await clients[2].recv()
            await clients[2].send(packb({"n": 3}))
            await until(lambda: server.num_requests == 2)
            policy.release()
            answer = unpackb(await clients[2].recv())
            assert answer["server_timing"]["queue_depth"] == 1

    run(scenario, policy, max_waiting=1)
    assert policy.seen == [1, 3, 4]


def test_too_many_clients():
    async def scenario(server, port):
        async with connect(port) as one, connect(port):
            with pytest.raises(InvalidStatus) as refused:
                await connect(port)
            assert refused.value.response.status_code == 503
            assert refused.value.response.body == b"The server has 2 clients, and takes no more (--max_connections).\n"
            await one.recv()
            assert "actions" in await ask(one, {"n": 1})

    run(scenario, max_connections=2)


def test_a_message_that_is_too_long():
    async def scenario(server, port):
        for frames in ([bytes(2000)], [bytes(600), bytes(600)]):  # in one frame, and in several
            async with connect(port) as client:
                await client.recv()
                await client.send(frames)
                with pytest.raises(ConnectionClosed) as closed:
                    await client.recv()
            assert closed.value.rcvd.code == 1009 and "1000 bytes" in closed.value.rcvd.reason

    run(scenario, max_message_mb=0.001)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("Authorization", "Api-Key other")],
        [("Authorization", "Bearer söcret")],
        [("Authorization", "söcret")],
        [("Authorization", "Api-Key söcret"), ("Authorization", "Api-Key söcret")],
    ],
    ids=["none", "wrong", "another scheme", "no scheme", "twice"],
)
def test_without_the_key_nobody_is_served(headers):
    async def scenario(server, port):
        with pytest.raises(InvalidStatus) as refused:
            await connect(port, additional_headers=headers)
        assert refused.value.response.status_code == 401
        assert b"Authorization: Api-Key <key>" in refused.value.response.body
        assert "söcret".encode() not in refused.value.response.body
        async with connect(port, additional_headers={"Authorization": "Api-Key söcret"}) as client:
            await client.recv()
            assert "actions" in await ask(client, {"n": 1})

    run(scenario, api_key="söcret")


def http_get(port: int, path: str, **headers) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    return response.status, response.read().decode()


def samples(text: str) -> dict[str, float]:
    """Prometheus's text format -> value of each sample; every line of it must be well-formed."""
    values = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, value = re.fullmatch(r'([a-z_]+(?:\{quantile="[\d.]+"\})?) (\S+)', line).groups()
            values[name] = float(value)
    return values


def test_metrics_count_what_happens(caplog):
    def policy(observation):
        if observation["n"] == 0:
            raise RuntimeError("no such weights")
        clipped = {"values": observation["n"], "of": 6, "share": observation["n"] / 6, "largest": 0.5, "dimension": 2}
        return {"actions": np.zeros((2, 3)), "clipped": clipped}

    async def scenario(server, port):
        status, text = await asyncio.to_thread(http_get, port, "/metrics", Authorization="Api-Key key")
        before = samples(text)
        assert status == 200 and not any(v for name, v in before.items() if "quantile" not in name)
        async with connect(port, additional_headers=key) as client:
            await client.recv()
            assert (await ask(client, {"n": 4}))["clipped"]["values"] == 4
            await ask(client, {"n": 2})
            _, text = await asyncio.to_thread(http_get, port, "/metrics", Authorization="Api-Key key")
            assert samples(text)["kivla_connections"] == 1
            await client.send(b"garbage")
            await refusal(client)
        async with connect(port, additional_headers=key) as client:
            await client.recv()
            await client.send(packb({"n": 0}))
            await refusal(client)
        assert (await asyncio.to_thread(http_get, port, "/metrics"))[0] == 401, "counts are not for everybody, either"
        found = samples((await asyncio.to_thread(http_get, port, "/metrics", Authorization="Api-Key key"))[1])
        expected = {"answers": 2, "refusals": 1, "failures": 1, "refused_connections": 1, "slow_readers": 0}
        expected |= {"values": 12, "clipped_values": 6}
        assert {name: found[f"kivla_{name}_total"] for name in expected} == expected
        assert found["kivla_policy_seconds_count"] == found["kivla_request_seconds_count"] == 2
        for kind in ("policy", "request"):
            assert (
                0
                < found[f'kivla_{kind}_seconds{{quantile="0.5"}}']
                <= found[f'kivla_{kind}_seconds{{quantile="0.99"}}']
            )
        assert found["kivla_requests"] == 0

    key = {"Authorization": "Api-Key key"}
    run(scenario, policy, api_key="key")
    warnings = [record.getMessage() for record in caplog.records if "were clipped" in record.getMessage()]
    assert len(warnings) == 1, "one a minute"
    assert "67 % of a chunk's values" in warnings[0] and "0.5 widths of the range, in dimension 2" in warnings[0]


def test_clients_that_do_not_read_keep_nobody_waiting():
    """Their answers fill the network's buffers; then they are dropped, and until then others are served."""
    large = np.zeros((1000, 1000))  # 8 MB, more than any buffer

    async def scenario(server, port):
        slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        for _, writer in slow:
            message = packb({"n": 1, "large": True})
            writer.write(HANDSHAKE + bytes([0x82, 0x80 | len(message)]) + bytes(4) + message)  # a mask of zeros
        await until(lambda: server.metrics.answers == 3)
        async with connect(port) as client:  # although nobody else may wait
            await client.recv()
            answer = await ask(client, {"n": 4})
            assert answer["server_timing"]["queue_depth"] == 0 and "actions" in answer
        await until(lambda: server.metrics.slow_readers == 3)
        for _, writer in slow:
            writer.transport.abort()

    policy = Policy()

    def answer(observation):
        return {"actions": large} if observation.get("large") else policy(observation)

    run(scenario, answer, max_waiting=3, send_timeout=0.5)


def test_a_server_stops_although_a_client_does_not_read():
    async def everything():
        server = PolicyServer(lambda _: {"actions": np.zeros((1000, 1000))}, read, send_timeout=0.2)
        async with asyncio.timeout(PATIENCE):
            async with server.listen(port=0) as port:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                message = packb({"n": 1})
                writer.write(HANDSHAKE + bytes([0x82, 0x80 | len(message)]) + bytes(4) + message)
                await until(lambda: server.metrics.answers == 1)
            writer.transport.abort()

    asyncio.run(everything())


def test_long_texts_of_clients_are_not_sent_back_in_full(caplog):
    async def scenario(server, port):
        async with connect(port) as client:
            await client.recv()
            await client.send(
                b"\x81\xa1n\x84"
                + b"".join(
                    msgpack.packb(value)
                    for value in (b"__ndarray__", True, b"data", b"", b"dtype", "x" * 10**6, b"shape", [1])
                )
            )
            told, _ = await refusal(client)
            assert "are refused" not in told and told.endswith("characters)") and len(told) < 3000

    run(scenario)
    assert len(caplog.text) < 10_000


def test_web_pages_are_refused():
    async def scenario(server, port):
        with pytest.raises(InvalidStatus) as refused:
            await connect(port, origin="http://example.org")
        assert refused.value.response.status_code == 403

    run(scenario)


HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\x16\x03\x01\x02\x00garbage\r\n\r\n",
        HANDSHAKE[:40],
        HANDSHAKE,
        HANDSHAKE + b"\x82\xff" + bytes(3),  # the length of a frame, cut off
        HANDSHAKE + b"\x82\x8a" + bytes(4) + b"half",  # 4 of 10 bytes
        HANDSHAKE + b"\x82\xff\x7f" + b"\xff" * 7 + bytes(4),  # the header of a frame of 2^63 bytes
        HANDSHAKE + b"\xff" * 64,  # no frame
        HANDSHAKE + b"\x82\x81" + bytes(4) + b"\x01" * 3,  # a whole one, without a mask
    ],
    ids=["nothing", "no http", "half handshake", "handshake", "half header", "half frame", "huge", "garbage", "odd"],
)
def test_clients_that_vanish_half_way(sent):
    async def scenario(server, port):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        await writer.drain()
        await is_served(port)  # beside it
        writer.transport.abort()

    run(scenario)


def test_clients_that_do_not_wait_for_their_answer(caplog):
    policy = Policy()

    async def scenario(server, port):
        policy.hold()
        clients = []
        for n in (1, 2, 3):
            clients.append(await connect(port))
            await clients[-1].recv()
            await clients[-1].send(packb({"n": n}))
            await until(lambda n=n: server.num_requests == n)
        clients[0].transport.abort()  # while the policy thinks about it
        clients[1].transport.abort()  # while it waits
        await clients[0].wait_closed()
        await clients[1].wait_closed()
        async with connect(port) as other:  # the server has had time to notice
            await other.recv()
            policy.release()
            assert "actions" in unpackb(await clients[2].recv())
            await clients[2].close()

    run(scenario, policy)
    assert policy.seen == [1, 3, 4], "the policy must not think about what nobody waits for"
    assert "Traceback" not in caplog.text, "clients may go as they like"


def test_shutdown_answers_the_running_request_and_tells_the_others():
    policy = Policy()

    async def everything():
        server = PolicyServer(policy, read)
        async with AsyncExitStack() as stack:
            async with server.listen(port=0) as port:
                running, waiting, idle = [await stack.enter_async_context(connect(port)) for _ in range(3)]
                for client in (running, waiting, idle):
                    await client.recv()
                policy.hold()
                for n, client in enumerate((running, waiting), 1):
                    await client.send(packb({"n": n}))
                    await until(lambda n=n: server.num_requests == n)
                # Once the server is stopping
                asyncio.get_running_loop().call_later(0.05, policy.release)
            assert (unpackb(await running.recv()))["actions"].tolist() == [[1.0] * 3] * 2
            assert await refusal(waiting) == ("The server is stopping.", 1001)
            for client in (running, idle):
                with pytest.raises(ConnectionClosed) as closed:
                    await client.recv()
                assert closed.value.rcvd.code == 1001 and closed.value.rcvd.reason == "The server is stopping."
            with pytest.raises(OSError):
                await connect(port)

    asyncio.run(everything())
    assert policy.seen == [1]


def test_a_server_may_listen_again():
    server = PolicyServer(Policy(), read, {"policy": "test"})

    async def twice():
        for _ in range(2):
            async with server.listen(port=0) as port:
                await is_served(port)

    asyncio.run(twice())


def test_this_machine_alone_by_default():
    async def scenario(server, port):
        with pytest.raises(OSError):  # another address of this machine, where a server for everybody would answer
            await websocket(f"ws://127.0.0.2:{port}", proxy=None)

    run(scenario)


# ------------------------------------------------------------------------------------------------------- in batches
class PolicyOfSeveral(Policy):
    """Fails on observations that say so; remembers who was answered together."""

    def __init__(self):
        super().__init__()
        self.passes = []

    def __call__(self, observation: dict) -> dict:
        if observation.get("fail"):
            raise RuntimeError("no such weights")
        return super().__call__(observation)

    def together(self, observations: list[dict]) -> list[dict]:
        self.passes.append([observation["n"] for observation in observations])
        return [self(observation) for observation in observations]


async def ask_while_held(stack, server, port, policy, messages: list[bytes]) -> list[ClientConnection]:
    """Clients whose requests wait in this order, while the policy is held by the first one's."""
    clients = [await stack.enter_async_context(connect(port)) for _ in messages]
    policy.hold()
    for i, (client, message) in enumerate(zip(clients, messages, strict=True)):
        await client.recv()
        await client.send(message)
        await until(lambda i=i: server.num_requests == i + 1 and policy.running)
    return clients


def test_requests_that_wait_together_are_answered_together():
    policy = PolicyOfSeveral()

    async def scenario(server, port):
        async with AsyncExitStack() as stack:
            messages = [packb({"n": n}) for n in range(1, 7)]
            clients = await ask_while_held(stack, server, port, policy, messages)
            policy.release()
            answers = [unpackb(await client.recv()) for client in clients]
        assert policy.passes == [[2, 3, 4], [5, 6]] and policy.seen == [1, 2, 3, 4, 5, 6]
        sizes = [answer["policy_timing"]["batch_size"] for answer in answers]
        assert sizes == [1, 3, 3, 3, 2, 2]
        for n, answer in enumerate(answers, 1):
            assert answer["actions"][0, 0] == 1 / np.float32(n), "everyone gets their own"
            assert answer["server_timing"]["infer_ms"] >= answer["policy_timing"]["infer_ms"] > 0
        together = {answer["policy_timing"]["infer_ms"] for answer in answers[1:4]}
        assert len(together) == 1, "the time of the pass"
        assert server.metrics.passes == 3 and server.metrics.answers == 6

    run(scenario, policy, infer_together=policy.together, max_batch_size=3)


def test_what_is_wrong_with_one_does_not_concern_the_others(caplog):
    policy = PolicyOfSeveral()
    messages = [packb(m) for m in ({"n": 1}, {"n": 2}, {"n": 3, "fail": True}, {"n": "four"}, {"n": 5})] + [b"\xc1"]

    async def scenario(server, port):
        async with AsyncExitStack() as stack:
            clients = await ask_while_held(stack, server, port, policy, messages)
            policy.release()
            for client, n in ((clients[0], 1), (clients[1], 2), (clients[4], 5)):
                answer = unpackb(await client.recv())
                assert answer["actions"][0, 0] == 1 / np.float32(n) and answer["policy_timing"]["batch_size"] == 1
            assert await refusal(clients[2]) == ("RuntimeError: no such weights", 1011)
            assert "'n' must be a whole number" in (await refusal(clients[3]))[0]
            assert "not msgpack" in (await refusal(clients[5]))[0]
        assert policy.passes == [[2, 3, 5]] and server.metrics.failures == 1 and server.metrics.refusals == 2

    run(scenario, policy, infer_together=policy.together, max_batch_size=8)


def test_a_request_waits_for_others_and_no_longer_than_it_is_told():
    policy = PolicyOfSeveral()

    async def scenario(server, port):
        async with connect(port) as one, connect(port) as two:
            await one.recv(), await two.recv()
            answer = await ask(one, {"n": 1})  # the other one says nothing
            assert answer["server_timing"]["wait_ms"] >= 200 and policy.passes == []
            await one.send(packb({"n": 2}))
            await two.send(packb({"n": 3}))
            answers = [unpackb(await client.recv()) for client in (one, two)]
            assert policy.passes == [[2, 3]] and max(a["server_timing"]["wait_ms"] for a in answers) < 200
            await two.close()
            await until(lambda: len(server._server.connections) == 1)
            answer = await ask(one, {"n": 4})
            assert answer["server_timing"]["wait_ms"] < 200, "there is nobody to wait for"

    run(scenario, policy, infer_together=policy.together, max_batch_size=8, max_batch_wait_ms=200)


def test_more_may_wait_than_run_together():
    """`max_waiting` counts those beside the batch that runs."""
    policy = PolicyOfSeveral()

    async def scenario(server, port):
        async with AsyncExitStack() as stack:
            clients = await ask_while_held(stack, server, port, policy, [packb({"n": n}) for n in (1, 2, 3)])
            last = await stack.enter_async_context(connect(port))
            await last.recv()
            await last.send(packb({"n": 4}))
            told, code = await refusal(last)
            assert "2 requests wait already" in told and code == 1013
            policy.release()
            assert ["actions" in unpackb(await client.recv()) for client in clients] == [True] * 3

    run(scenario, policy, infer_together=policy.together, max_batch_size=2, max_waiting=2)


def test_batches_that_cannot_be():
    for options, text in (
        ({"max_batch_size": 0}, "max_batch_size must be at least 1"),
        ({"max_batch_wait_ms": -1.0}, "max_batch_wait_ms not negative"),
        ({"max_batch_size": 2}, "needs `infer_together`"),
    ):
        with pytest.raises(ValueError, match=text):
            PolicyServer(Policy(), read, **options)
