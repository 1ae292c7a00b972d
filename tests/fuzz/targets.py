"""Every entry point that takes input from strangers: what is valid there, how it is damaged, and what may be raised."""

import asyncio
import io
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import datasets
import hypothesis
import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from kivla import BinningActionTokenizer, FASTActionTokenizer, KIVLAForActionPrediction, KIVLAProcessor, LeRobotDataset
from kivla.conversion.weight_files import Weights
from kivla.processing import Normalizer, load_action_tokenizer, statistics_from_json
from kivla.processing.image_input import as_rgb
from kivla.serving.msgpack_numpy import packb, unpackb
from kivla.serving.observation_presets import ObservationReader
from kivla.serving.policy_server import PolicyServer
from kivla.training.data.checks.report import check_data
from kivla.training.data.lerobot.metadata import STATISTIC_NAMES
from kivla.training.data.vlm.dataset import VLMDataset
from tests.helpers.lerobot_v21 import write_v21_twin
from tests.helpers.policies import DATASET, make_policy

from .harness import HANG_SECONDS, Target
from .mutations import mutate_bytes, mutate_json
from .video_places import check as check_places

CAMERA = "observation.images.corner2"


def damaged_file(path: Path, mutate: Callable, call: Callable[[], None]) -> Callable:
    """Feeds damaged versions of one file of a folder; the others stay whole."""
    whole = path.read_bytes()
    given = whole.decode() if mutate is mutate_json else whole

    call()  # the whole file is good

    def feed(seed, count, attempt):
        for number in range(count):
            path.write_bytes(mutate(given, np.random.default_rng((*seed, number))))
            attempt(call)
        path.write_bytes(whole)

    return feed


def generated(strategy: st.SearchStrategy, call: Callable) -> Callable:
    """Feeds values of a hypothesis strategy."""

    def feed(seed, count, attempt):
        settings = hypothesis.settings(
            max_examples=count,
            phases=[hypothesis.Phase.generate],
            database=None,
            deadline=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        body = hypothesis.given(strategy)(lambda value: attempt(lambda: call(value)))
        hypothesis.seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))(settings(body))()

    return feed


# Datasets ------------------------------------------------------------------------------------------------------------


def read_dataset(data: LeRobotDataset) -> None:
    for item in (0, len(data) - 1):
        data[item]
    data.statistics, data.meta_statistics, repr(data)


def check_dataset(data: LeRobotDataset) -> None:
    check_data(data, quick=True, progress=False).to_json()


def dataset_file(
    name: str, mutate: Callable, cameras: list[str] | None, v21: bool = False, use: Callable = read_dataset
) -> Callable:
    def prepare(folder: Path) -> Callable:
        root = folder / "data"
        write_v21_twin(DATASET, root) if v21 else shutil.copytree(DATASET, root)
        datasets.config.HF_DATASETS_CACHE = folder / "cache"
        datasets.disable_progress_bars()

        def call():
            try:
                use(LeRobotDataset(root, chunk_size=4, cameras=cameras))
            finally:
                shutil.rmtree(folder / "cache", ignore_errors=True)

        return damaged_file(root / name, mutate, call)

    return prepare


def video_places(folder: Path) -> Callable:
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    datasets.disable_progress_bars()

    def feed(seed, count, attempt):
        for number in range(count):
            root = folder / f"data_{number}"
            attempt(lambda root=root, number=number: check_places(root, (*seed, number)))
            shutil.rmtree(root, ignore_errors=True)
            shutil.rmtree(folder / "cache", ignore_errors=True)

    return feed


def image_file(folder: Path) -> Callable:
    pixels = np.random.default_rng(0).integers(256, size=(24, 32, 3), dtype=np.uint8)
    files = []
    for mode in ("RGB", "L", "P", "RGBA", "1"):
        for kind in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"):
            if kind == "JPEG" and mode in ("P", "RGBA", "1"):
                continue
            buffer = io.BytesIO()
            Image.fromarray(pixels).convert(mode).save(buffer, kind)
            files.append(buffer.getvalue())

    def feed(seed, count, attempt):
        for number in range(count):
            rng = np.random.default_rng((*seed, number))
            data = mutate_bytes(files[rng.integers(len(files))], rng)
            attempt(lambda data=data: as_rgb(data))

    return feed


def vlm_json(name: str, mutate: Callable) -> Callable:
    """JSON beside its pictures, or JSON lines."""

    def prepare(folder: Path) -> Callable:
        Image.new("RGB", (8, 8)).save(folder / "a.png")
        conversation = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "a cup"}]
        answer = {"role": "assistant", "content": [{"type": "text", "text": "red"}]}
        question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Color?"}]}
        rows = [
            {"id": 1, "image": "a.png", "conversations": conversation},
            {"messages": [question, answer], "images": ["a.png"], "system": "Be short."},
        ]
        lines = "\n".join(map(json.dumps, rows))
        (folder / name).write_text(lines if name.endswith(".jsonl") else json.dumps(rows))
        return damaged_file(folder / name, mutate, lambda: list(VLMDataset.load(folder / name)))

    return prepare


# Policies ------------------------------------------------------------------------------------------------------------


def policy_file(name: str, mutate: Callable, load: Callable[[Path], None]) -> Callable:
    def prepare(folder: Path) -> Callable:
        datasets.config.HF_DATASETS_CACHE = folder / "cache"
        model, processor = make_policy(folder / "vlm")
        model.resize_token_embeddings(processor.vocab_size)
        model.save_pretrained(folder / "policy")
        processor.save_pretrained(folder / "policy")
        return damaged_file(folder / "policy" / name, mutate, lambda: load(folder / "policy"))

    return prepare


def load_model(folder: Path) -> None:
    KIVLAForActionPrediction.from_pretrained(folder)


def load_processor(folder: Path) -> None:
    KIVLAProcessor.from_pretrained(folder)


def read_weights(folder: Path) -> None:
    weights = Weights(folder)
    for name in list(weights.shapes)[:5]:
        weights[name]


def tokenizer_file(name: str) -> Callable:
    def prepare(folder: Path) -> Callable:
        chunks = np.random.default_rng(0).normal(size=(50, 4, 3))
        tokenizer = BinningActionTokenizer() if name == BinningActionTokenizer.FILE else FASTActionTokenizer.fit(chunks)
        tokenizer.save_pretrained(folder / "tokenizer")

        def call():
            loaded = load_action_tokenizer(folder / "tokenizer")
            loaded.decode(loaded.encode(chunks[:2]), 4, 3)
            loaded.grammar()

        return damaged_file(folder / "tokenizer" / name, mutate_json, call)

    return prepare


# Values --------------------------------------------------------------------------------------------------------------

FLOATS = st.floats(width=32)
NUMBERS = st.one_of(FLOATS, st.integers(), st.booleans(), st.none(), st.text(max_size=3))
DTYPES = st.one_of(
    hnp.scalar_dtypes(), st.sampled_from([np.dtype(object), np.dtype("float16"), np.dtype("uint8"), np.dtype("S3")])
)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6)
ARRAYS = DTYPES.flatmap(lambda dtype: hnp.arrays(dtype, SHAPES, elements=NUMBERS if dtype.hasobject else None))
VECTORS = st.one_of(hnp.arrays(np.float32, st.integers(0, 6), elements=FLOATS), st.lists(NUMBERS, max_size=6), ARRAYS)
CHUNKS = st.one_of(
    hnp.arrays(np.float64, hnp.array_shapes(min_dims=1, max_dims=3, max_side=8), elements=FLOATS), ARRAYS
)
PIL_IMAGES = st.builds(
    Image.new,
    st.sampled_from(["RGB", "L", "RGBA", "P", "1", "CMYK", "I;16", "I", "F", "LA", "HSV", "YCbCr", "LAB"]),
    st.tuples(st.integers(0, 40), st.integers(0, 40)),
)
TENSORS = st.builds(
    lambda shape, dtype, grad: torch.zeros(shape, dtype=dtype).requires_grad_(grad and dtype.is_floating_point),
    SHAPES,
    st.sampled_from([torch.uint8, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool]),
    st.booleans(),
)
GOOD_IMAGES = hnp.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3)))
IMAGES = st.one_of(GOOD_IMAGES, PIL_IMAGES, TENSORS, ARRAYS, st.none(), st.text(max_size=5), st.integers())
TEXTS = st.one_of(st.text(max_size=40), st.just("pick up the cup"), st.just("<image>"), st.none(), st.integers())
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


def values(strategy: st.SearchStrategy, make: Callable[[Path], Callable]) -> Callable:
    return lambda folder: generated(strategy, make(folder))


def make_processor(folder: Path) -> Callable:
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    processor = make_policy(folder / "vlm")[1]

    def call(arguments):
        batch = processor(**{name: [value] for name, value in arguments.items() if value is not None or name == "text"})
        assert torch.isfinite(batch["pixel_values"]).all() if "pixel_values" in batch else True
        assert "actions" not in batch or torch.isfinite(batch["actions"]).all()

    return call


OBSERVATIONS = st.fixed_dictionaries(
    {
        "images": st.one_of(
            st.lists(IMAGES, max_size=2),
            st.lists(GOOD_IMAGES, min_size=1, max_size=1),
            st.dictionaries(st.sampled_from([CAMERA, "x"]), IMAGES),
        ),
        "text": TEXTS,
        "state": st.one_of(hnp.arrays(np.float32, 4, elements=st.floats(-2, 2, width=32)), VECTORS, st.none()),
    },
    optional={
        "actions": st.one_of(hnp.arrays(np.float32, (4, 4), elements=st.floats(-2, 2, width=32)), CHUNKS),
        "action_is_pad": VECTORS,
        "response": TEXTS,
        "robot": st.one_of(st.none(), st.text(max_size=3)),
    },
)


def make_prompt(folder: Path) -> Callable:
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    processor = make_policy(folder / "vlm")[1]

    def call(template):
        again = KIVLAProcessor(
            processor.vlm_processor, None, processor.statistics, chunk_size=6, max_action_dim=5, action_prompt=template
        )
        again(images=[[np.zeros((8, 8, 3), np.uint8)]], text=["x"], state=[[0.0] * 4])

    return call


PROMPTS = st.one_of(
    st.text(max_size=30),
    st.tuples(st.text(max_size=5), st.text(max_size=5)).map("{text} {state}".join),
    st.lists(
        st.sampled_from(
            [
                "{text}",
                "{state}",
                "{",
                "}",
                "{text!r}",
                "{text:9999999}",
                "{text.x}",
                "a",
                "{text[0]}",
                "{state:>{text}}",
                "\n",
                "<image>",
                "{text:s}",
            ]
        ),
        max_size=6,
    ).map("".join),
)


def make_encoders(folder: Path) -> Callable:
    rng = np.random.default_rng(0)
    tokenizers = [BinningActionTokenizer(), FASTActionTokenizer.fit(rng.normal(size=(50, 4, 3)))]

    def call(chunks):
        for tokenizer in tokenizers:
            for codes in tokenizer.encode(chunks):
                assert all(0 <= code < tokenizer.vocab_size for code in codes)

    return call


def make_decoders(folder: Path) -> Callable:
    rng = np.random.default_rng(0)
    tokenizers = [BinningActionTokenizer(), FASTActionTokenizer.fit(rng.normal(size=(50, 4, 3)))]

    def call(value):
        sequences, steps, dim = value
        for tokenizer in tokenizers:
            for chunk in tokenizer.decode(sequences, steps, dim):
                assert not isinstance(chunk, np.ndarray) or (chunk.shape == (steps, dim) and np.isfinite(chunk).all())

    return call


def make_statistics(folder: Path) -> Callable:
    def call(value):
        statistics, values, mode = value
        normalizer = Normalizer(statistics_from_json(statistics), mode)
        assert np.isfinite(normalizer.unnormalize(normalizer.normalize(values))).all()

    return call


MODES = st.sampled_from(["quantile", "mean_std", "none", "x"])
STATISTICS = st.one_of(
    st.tuples(
        st.dictionaries(
            st.sampled_from(STATISTIC_NAMES),
            st.one_of(st.lists(FLOATS, max_size=3), JSON_VALUES),
        ),
        VECTORS,
        MODES,
    ),
    st.integers(1, 3).flatmap(  # of one length, if nothing else
        lambda length: st.tuples(
            st.fixed_dictionaries(
                {name: st.lists(FLOATS, min_size=length, max_size=length) for name in STATISTIC_NAMES}
            ),
            hnp.arrays(np.float32, length, elements=FLOATS),
            MODES,
        )
    ),
)


# The server ----------------------------------------------------------------------------------------------------------


def good_request() -> dict:
    return {"images": {"a": np.zeros((32, 32, 3), np.uint8)}, "text": "pick", "state": np.zeros(64, np.float32)}


READERS = {
    "plain": ObservationReader(),
    "libero": ObservationReader("libero", ["image", "wrist_image"]),
    "droid": ObservationReader("droid", ["exterior_image_1_left", "wrist_image_left"], default_text="pick"),
    "with an age": ObservationReader(max_age_ms=1e12),
}


def read(reader: ObservationReader, request) -> None:
    """What is accepted is an observation."""
    observation = reader(request)
    images = observation["images"]
    images = images.values() if isinstance(images, dict) else images
    assert all(image is None or isinstance(image, np.ndarray) for image in images)
    assert isinstance(observation["text"], str)
    assert observation.get("state") is None or np.asarray(observation["state"]).dtype.kind in "biuf"


def message(folder: Path) -> Callable:
    whole = packb(good_request())

    def feed(seed, count, attempt):
        for number in range(count):
            data = mutate_bytes(whole, np.random.default_rng((*seed, number)))
            attempt(lambda data=data: read(READERS["plain"], unpackb(data)))

    return feed


ANYTHING = st.one_of(ARRAYS, JSON_VALUES, st.dictionaries(st.text(max_size=3), ARRAYS, max_size=2))
STATE_VALUES = st.one_of(hnp.arrays(np.float32, 4, elements=st.floats(-2, 2, width=32)), VECTORS)
PLAIN = {"images": st.one_of(st.lists(GOOD_IMAGES, max_size=2), ANYTHING), "text": TEXTS, "state": STATE_VALUES}
KEYS_OF_READERS = {
    "plain": PLAIN,
    "libero": {
        "observation/image": st.one_of(GOOD_IMAGES, ANYTHING),
        "observation/wrist_image": GOOD_IMAGES,
        "observation/state": STATE_VALUES,
        "prompt": TEXTS,
    },
    "droid": {
        "observation/exterior_image_1_left": GOOD_IMAGES,
        "observation/wrist_image_left": st.one_of(GOOD_IMAGES, ANYTHING),
        "observation/joint_position": STATE_VALUES,
        "observation/gripper_position": hnp.arrays(np.float32, 1, elements=FLOATS),
    },
    "with an age": PLAIN | {"timestamp": st.one_of(st.floats(), st.floats(1.7e9, 2e9), JSON_VALUES)},
}
KEYS = st.sampled_from(sorted(set().union(*KEYS_OF_READERS.values()) | {"robot", "response", "x"}))
REQUESTS = st.sampled_from(sorted(READERS)).flatmap(
    lambda name: st.tuples(
        st.just(READERS[name]),
        st.one_of(
            st.fixed_dictionaries(KEYS_OF_READERS[name]),
            st.fixed_dictionaries(KEYS_OF_READERS[name], optional={"robot": TEXTS, "response": TEXTS, "x": ANYTHING}),
            st.dictionaries(KEYS, ANYTHING),
            JSON_VALUES,
        ),
    )
)


class ServerRefusal(Exception):
    """The server answered with a text, for people, and closed the connection."""


def served(folder: Path) -> Callable:
    """A server in a thread, and clients that send damaged frames; after each it must still answer a good one."""
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.client import connect

    ready, port = threading.Event(), []

    async def serve():
        server = PolicyServer(lambda observation: {"actions": np.zeros((2, 2), np.float32)}, ObservationReader())
        async with server.listen(port=0) as number:
            port.append(number)
            ready.set()
            await asyncio.Event().wait()

    threading.Thread(target=lambda: asyncio.run(serve()), daemon=True).start()
    assert ready.wait(HANG_SECONDS)
    whole = packb(good_request())

    def ask(data: bytes | str) -> None:
        with connect(f"ws://127.0.0.1:{port[0]}", compression=None, proxy=None) as robot:
            robot.recv(timeout=HANG_SECONDS)
            robot.send(data)
            try:
                answer = robot.recv(timeout=HANG_SECONDS)
            except ConnectionClosed as error:
                raise ServerRefusal(str(error)) from error
            if isinstance(answer, str):
                raise ServerRefusal(answer)

    def feed(seed, count, attempt):
        for number in range(count):
            rng = np.random.default_rng((*seed, number))
            data = mutate_bytes(whole, rng)
            attempt(lambda data=data: ask(data.decode("latin-1") if data and data[0] % 16 == 0 else data))
        ask(whole)

    return feed


TARGETS = {
    target.name: target
    for target in (
        Target("dataset: meta/info.json", dataset_file("meta/info.json", mutate_json, []), share=1.2),
        Target(
            "check-data: meta/info.json",
            dataset_file("meta/info.json", mutate_json, [], use=check_dataset),
            share=0.1,
        ),
        Target("dataset: meta/stats.json", dataset_file("meta/stats.json", mutate_json, []), share=0.4),
        Target("dataset: meta/tasks.parquet", dataset_file("meta/tasks.parquet", mutate_bytes, []), share=0.8),
        Target(
            "dataset: meta/episodes/",
            dataset_file("meta/episodes/chunk-000/file-000.parquet", mutate_bytes, [CAMERA]),
            share=0.8,
        ),
        Target("dataset: data/", dataset_file("data/chunk-000/file-000.parquet", mutate_bytes, []), share=1.2),
        Target(
            "dataset: videos/", dataset_file(f"videos/{CAMERA}/chunk-000/file-000.mp4", mutate_bytes, None), share=0.8
        ),
        Target("dataset v2.1: meta/info.json", dataset_file("meta/info.json", mutate_json, [], v21=True), share=0.4),
        Target("dataset v2.1: episodes.jsonl", dataset_file("meta/episodes.jsonl", mutate_bytes, [], True), share=0.4),
        Target("dataset v2.1: tasks.jsonl", dataset_file("meta/tasks.jsonl", mutate_bytes, [], True), share=0.2),
        Target("dataset: places in videos", video_places, (ValueError,), share=0.5),
        Target("stored image", image_file, (ValueError,), share=2),
        Target("VLM data: JSON", vlm_json("rows.json", mutate_json), (ValueError,)),
        Target("VLM data: JSON lines", vlm_json("rows.jsonl", mutate_bytes), (ValueError,)),
        Target("policy: config.json", policy_file("config.json", mutate_json, load_model), (ValueError, OSError)),
        Target(
            "policy: model.safetensors",
            policy_file("model.safetensors", mutate_bytes, load_model),
            (ValueError, OSError),
        ),
        Target("weights to convert", policy_file("model.safetensors", mutate_bytes, read_weights)),
        Target("policy: processor_config.json", policy_file("processor_config.json", mutate_json, load_processor)),
        Target(
            "policy: vlm_processor/tokenizer.json",
            policy_file("vlm_processor/tokenizer.json", mutate_json, load_processor),
            (ValueError, OSError),
            share=0.5,
        ),
        Target("action tokenizer: bins", tokenizer_file("action_tokenizer.json"), share=0.5),
        Target("action tokenizer: processor_config.json", tokenizer_file("processor_config.json"), share=0.5),
        Target("action tokenizer: tokenizer.json", tokenizer_file("tokenizer.json")),
        Target("image", values(IMAGES, lambda folder: as_rgb), (ValueError,)),
        Target("observation and chunk", values(OBSERVATIONS, make_processor), (ValueError,), share=2),
        Target("action prompt", values(PROMPTS, make_prompt), (ValueError,), share=0.5),
        Target("chunk to encode", values(CHUNKS, make_encoders), (ValueError,)),
        Target(
            "codes to decode",
            values(
                st.tuples(
                    st.lists(st.lists(st.integers(-5, 1100) | st.integers(), max_size=14), max_size=3),
                    st.integers(-1, 5),
                    st.integers(-1, 4),
                ),
                make_decoders,
            ),
            (ValueError,),
        ),
        Target("statistics", values(STATISTICS, make_statistics), (ValueError,)),
        Target("message", message, (ValueError,), share=2),
        Target("request", values(REQUESTS, lambda folder: lambda request: read(*request)), (ValueError,)),
        Target("frame to the server", served, (ServerRefusal,)),
    )
}
