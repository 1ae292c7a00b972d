"""Serve a policy, and ask it for actions as a robot does.

    python examples/serve_and_ask.py outputs/example_policy

The server is `kivla serve`. It runs where the GPU is, and the robot only needs the lines of `ask`. Robots that use
openpi's client need not even those: `WebsocketClientPolicy("127.0.0.1", port).infer(observation)` does the same.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import gymnasium
from websockets.sync.client import connect

import kivla.simulation  # noqa: F401 (makes the environment known to gymnasium)
from kivla.serving.msgpack_numpy import packb, unpackb


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a policy, and ask it for actions.")
    parser.add_argument("policy", nargs="?", default="outputs/example_policy", help="a folder or a Hub id")
    parser.add_argument("--port", type=int, default=0, help="a free one by default")
    args = parser.parse_args()

    env = gymnasium.make("KIVLA/Tabletop-v0")
    with serve(args.policy, args.port) as address:
        for seed in range(3):
            observation, info = env.reset(seed=seed)
            images = {"observation.images.top": observation["images"]["top"]}
            result = ask(address, {"images": images, "state": observation["state"], "text": info["instruction"]})
            milliseconds = result["server_timing"]["infer_ms"]
            print(f"{info['instruction']}: {len(result['actions'])} actions in {milliseconds:.0f} ms,")
            print(f"  the first is {result['actions'][0].round(2)}")


def ask(address: str, observation: dict) -> dict:
    """One request. A robot keeps its connection open, and sends one observation after the other."""
    with connect(address, max_size=None) as server:
        server.recv()  # what the server says of itself: policy, preset, length of a chunk
        server.send(packb(observation))
        return unpackb(server.recv(decode=False))


@contextmanager
def serve(policy: str, port: int) -> Iterator[str]:
    """`kivla serve` as long as the context lasts; yields its address."""
    command = [sys.executable, "-m", "kivla.cli", "serve", policy, "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = next(found for line in server.stdout if (found := re.search(r"ws://\S+", line)))
        try:
            yield address.group()
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
