"""What the policy server adds to the time of a request."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from functools import partial

import numpy as np
import torch
from transformers import pipeline
from websockets.sync.client import connect

from kivla import KIVLAConfig, KIVLAForActionPrediction, KIVLAProcessor
from kivla.demo.tiny_vlm import byte_tokenizer, make_tiny_vlm
from kivla.serving.msgpack_numpy import packb, unpackb
from kivla.serving.observation_presets import ObservationReader
from kivla.serving.policy_server import PolicyServer
from kivla.serving.served_policy import ServedPolicy

from .policies import ACTION_DIM, CAMERAS, SMALL, STATE_DIM, TINY, Size, millions
from .report import Comparison, Measurement
from .timing import interleaved

PIXELS = 224


def measure(quick: bool) -> Measurement:
    size = TINY if quick else SMALL
    pipe = make_pipeline(size)
    observation = make_observation()
    request = packb(observation)
    measurement = Measurement(
        "Asking a policy through the server",
        f"One client on this machine, {CAMERAS} images of {PIXELS} x {PIXELS} pixels ({len(request) / 1e6:.1f} MB a "
        f"request); policy of {millions(pipe.model)} parameters, {pipe.model.config.num_inference_steps} Euler steps. "
        "The server runs in a thread of the same process. Without a policy it answers with a chunk that it has: what "
        "is left is network, encoding and checks.",
    )
    chunk = pipe(observation)
    with ExitStack() as stack:
        ask = stack.enter_context(client_of(ServedPolicy(pipe)))
        ask_nobody = stack.enter_context(client_of(lambda _: chunk))
        actions = unpackb(ask(request))["actions"]
        measurement.check_equal("Actions", torch.tensor(actions), torch.from_numpy(chunk["actions"]))
        calls = {
            "server": lambda: unpackb(ask(packb(observation))),
            "pipeline": partial(pipe, observation),
            "nothing": lambda: unpackb(ask_nobody(packb(observation))),
        }
        seconds = interleaved(measurement.title, calls, repetitions=2 if quick else 200)
    slowest = {name: [float(np.quantile(values, 0.99))] for name, values in seconds.items()}
    measurement.comparisons = [
        Comparison("through the server", seconds["server"], "the pipeline", seconds["pipeline"]),
        Comparison("99th percentile", slowest["server"], "99th percentile", slowest["pipeline"]),
        Comparison("server, no policy", seconds["nothing"], "the pipeline", seconds["pipeline"]),
        Comparison("99th percentile, no policy", slowest["nothing"], "99th percentile", slowest["pipeline"]),
    ]
    return measurement


def make_pipeline(size: Size, **options):
    """`pipeline("action-prediction")` with a policy of random weights that always starts from the same noise.

    Args:
        **options: of the processor; by default it does not normalise.
    """
    vlm, vlm_processor = make_tiny_vlm(
        "paligemma", byte_tokenizer(), size.image_size, 14, size.hidden_size, size.num_layers, seed=0
    )
    sizes = {"chunk_size": size.chunk_size, "max_action_dim": ACTION_DIM, "max_state_dim": STATE_DIM}
    processor = KIVLAProcessor(vlm_processor, **{"normalization": "none", **options}, **sizes)
    torch.manual_seed(0)
    expert = {"hidden_size": size.expert_hidden_size, "intermediate_size": size.expert_intermediate_size}
    model = KIVLAForActionPrediction(KIVLAConfig(vlm_config=vlm.config, expert_config=expert, **sizes)).eval()
    with torch.no_grad():  # adaRMS starts as the identity, and the observation would not matter
        for name, parameter in model.expert.named_parameters():
            if "dense" in name:
                parameter.normal_(std=0.1)
    return pipeline("action-prediction", model=model, processor=processor, seed=0)


def make_observation(seed: int = 0, pixels: int = PIXELS) -> dict:
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (CAMERAS, pixels, pixels, 3), dtype=np.uint8)
    state = generator.uniform(-1, 1, STATE_DIM).astype(np.float32)
    return {"images": list(images), "text": "put the cup on the plate", "state": state}


@contextmanager
def client_of(policy: Callable[[dict], dict]):
    """Yields a function from a request to its answer, both encoded, through a server in a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    listening = PolicyServer(policy, ObservationReader()).listen(port=0)
    try:
        port = asyncio.run_coroutine_threadsafe(listening.__aenter__(), loop).result()
        with connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None, proxy=None) as client:
            client.recv()  # metadata

            def ask(request: bytes) -> bytes:
                client.send(request)
                return client.recv()

            yield ask
        asyncio.run_coroutine_threadsafe(listening.__aexit__(None, None, None), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
