"""Robots that know openpi's client alone, and others that know nothing: run by `test_openpi_client.py` beside a server.

python openpi_robots.py PORT FRAMES.npz ROBOTS REQUESTS

FRAMES.npz has images (N, height, width, 3), states (N, D), texts (N,) and the actions (N, H, A) that must come back.
Prints what happened as JSON.
"""

import json
import socket
import sys
import threading

import numpy as np
import websockets.sync.client
from openpi_client import msgpack_numpy
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy

HOST = "127.0.0.1"


def is_close(actions: np.ndarray, expected: np.ndarray) -> bool:
    """Within rounding: which requests share a pass, and so the order of its sums, depends on who waits."""
    tolerance = 256 * np.finfo(expected.dtype).eps * np.abs(expected).max()
    return actions.shape == expected.shape and bool(np.abs(actions - expected).max() <= tolerance)


class Robots:
    def __init__(self, port: int, frames):
        self.port, self.frames = port, frames
        self.lock = threading.Lock()
        self.found = {"answered": 0, "wrong": 0, "errors": [], "wait_ms": [], "infer_ms": [], "policy_ms": []}
        self.trouble = {"told": [], "vanished": 0}
        self.are_done = threading.Event()

    def observation(self, i: int) -> dict:
        return {
            "observation/image": self.frames["images"][i],
            "observation/wrist_image": self.frames["images"][i],
            "observation/state": self.frames["states"][i],
            "prompt": str(self.frames["texts"][i]),
        }

    def robot(self, number: int, requests: int) -> None:
        try:
            policy = WebsocketClientPolicy(HOST, self.port)
            for n in range(requests):
                i = (number + n) % len(self.frames["states"])
                result = policy.infer(self.observation(i))
                with self.lock:
                    self.found["answered"] += 1
                    expected = self.frames["actions"][i]
                    is_right = result["actions"].dtype == expected.dtype and is_close(result["actions"], expected)
                    self.found["wrong"] += not is_right
                    self.found["wait_ms"].append(result["server_timing"]["wait_ms"])
                    self.found["infer_ms"].append(result["server_timing"]["infer_ms"])
                    self.found["policy_ms"].append(result["policy_timing"]["infer_ms"])
        except Exception as error:
            with self.lock:
                self.found["errors"].append(repr(error))

    def troublemaker(self) -> None:
        """All kinds of nonsense, again and again, at least once each."""
        while True:
            message = msgpack_numpy.packb(self.observation(0))
            lacking = {key: value for key, value in self.observation(0).items() if key != "prompt"}
            wrong_type = {**self.observation(0), "observation/state": np.array(["a"] * 4)}
            for nonsense in (
                b"\xc1garbage",
                "a text frame",
                message[: len(message) // 2],
                message.replace(b"|u1", b"|O1", 1),
                msgpack_numpy.packb(lacking),
                msgpack_numpy.packb(wrong_type),
            ):
                client = self.connect()
                client.send(nonsense)
                told = client.recv()
                with self.lock:
                    self.trouble["told"].append(told if isinstance(told, str) else "it was answered")
                client.close()
            self.vanish(b"\x82\xff" + (2**40).to_bytes(8, "big") + bytes(4) + bytes(1000))  # a frame of a terabyte
            self.vanish(b"\x82\xfe" + (1000).to_bytes(2, "big") + bytes(4) + b"half a frame")
            self.vanish(b"\xff" * 100)
            client = self.connect()
            client.send(message)
            client.socket.shutdown(socket.SHUT_RDWR)  # without waiting for the answer
            if self.are_done.wait(0.2):
                return

    def connect(self):
        client = websockets.sync.client.connect(f"ws://{HOST}:{self.port}", compression=None, max_size=None)
        client.recv()
        return client

    def vanish(self, frames: bytes) -> None:
        handshake = (
            f"GET / HTTP/1.1\r\nHost: {HOST}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        with socket.create_connection((HOST, self.port)) as client:
            client.sendall(handshake.encode())
            client.recv(1000)
            client.sendall(frames)
        with self.lock:
            self.trouble["vanished"] += 1

    def chunks_one_by_one(self) -> bool:
        """Through openpi's `ActionChunkBroker` come the same actions, one after the other."""
        expected = self.frames["actions"][0]
        broker = ActionChunkBroker(WebsocketClientPolicy(HOST, self.port), action_horizon=len(expected))
        actions = [broker.infer(self.observation(0))["actions"] for _ in range(2 * len(expected))]
        return is_close(np.stack(actions), np.concatenate([expected, expected]))


def main() -> None:
    port, file, count, requests = sys.argv[1:]
    robots = Robots(int(port), dict(np.load(file)))
    threads = [threading.Thread(target=robots.robot, args=(n, int(requests))) for n in range(int(count))]
    troublemaker = threading.Thread(target=robots.troublemaker)
    for thread in (*threads, troublemaker):
        thread.start()
    for thread in threads:
        thread.join()
    robots.are_done.set()
    troublemaker.join()
    by_broker = robots.chunks_one_by_one()
    metadata = WebsocketClientPolicy(HOST, int(port)).get_server_metadata()
    print(json.dumps({**robots.found, "trouble": robots.trouble, "by_broker": by_broker, "metadata": metadata}))


if __name__ == "__main__":
    main()
