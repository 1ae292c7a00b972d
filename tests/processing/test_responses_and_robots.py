"""Conversations, sub-tasks before actions, and several robots in one processor."""

import numpy as np
import pytest
import torch

from kivla.modeling_kivla.backbone_attention import find_language_head
from kivla.modeling_kivla.generation_kivla import ChunkComplete
from kivla.processing import BinningActionTokenizer, KIVLAProcessor, compute_statistics
from kivla.processing.chat_format import chat_format, has_chat
from tests.helpers.tolerance import assert_close_relative
from tests.helpers.vlm_processors import KINDS, each_kind
from tests.processing.test_processing_kivla import (
    CHUNK,
    FAST,
    LONG,
    QUESTION,
    SHORT,
    STATISTICS,
    WIDTH,
    columns,
    image,
    make,
    observation,
    policy,
    real,
    vlm_processor,
)

TURNS = {
    "images": [image(4)],
    "text": ["What is it?", "Which colour has it?", "Is it full?"],
    "response": ["a cup", "red", "no"],
}


# ------------------------------------------------------------------------------------------------------ conversations
@each_kind
def test_a_conversation_is_what_the_chat_template_writes(name):
    processor = make(name)
    if not has_chat(processor.vlm_processor):
        with pytest.raises(ValueError, match=r"Example 0: this VLM .* has no chat template: it takes one question"):
            processor(**columns(TURNS))
        return
    batch = processor(**columns(TURNS))
    messages = []
    for i, (question, answer) in enumerate(zip(TURNS["text"], TURNS["response"], strict=True)):
        pictures = [{"type": "image"}] if i == 0 else []
        messages += [
            {"role": "user", "content": [*pictures, {"type": "text", "text": question}]},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ]
    written = vlm_processor(name).apply_chat_template(messages, tokenize=False)
    tokenizer = processor.tokenizer
    ours = tokenizer.decode(real(batch, "input_ids"))
    closing = chat_format(processor.vlm_processor, 1).closing
    # Images have become many tokens; some templates never write an end, which the VLM has to learn, and some invite
    # to think only in the turn that is asked for.
    tail, ours = (
        "".join(text.replace(closing, "").replace("<think>", "").split())
        for text in (written[written.index(TURNS["text"][0]) :], ours)
    )
    assert ours.endswith(tail), (ours[-300:], tail)

    learned = [token for token in real(batch, "labels") if token != -100]
    said = "".join(tokenizer.decode(learned).split())
    lead = "".join(chat_format(processor.vlm_processor, 1).lead.split())
    expected = "".join(lead + answer + closing for answer in TURNS["response"])
    assert said == "".join(expected.split()), "the answers and the ends of the VLM's turns are learned, nothing else"


def test_conversations_that_do_not_fit_are_refused():
    name = next(name for name in KINDS if vlm_processor_has_chat(name))
    with pytest.raises(ValueError, match="3 questions in `text` and 2 answers in `response`"):
        make(name)(**columns({**TURNS, "response": ["a cup", "red"]}))
    with pytest.raises(ValueError, match="`text` is a conversation, but actions are asked for"):
        make(name)(**columns({**LONG, **TURNS}))


def vlm_processor_has_chat(name: str) -> bool:
    try:
        return has_chat(vlm_processor(name))
    except pytest.skip.Exception:
        return False


# --------------------------------------------------------------------------------------------- responses and the expert
@each_kind
@pytest.mark.parametrize("reads", [False, True])
def test_a_given_response_stands_where_it_was_learned(name, reads):
    processor = make(name, expert_reads_response=reads)
    learned = processor(**columns(SHORT))
    acting = processor(**columns(observation(SHORT)), given_response=[SHORT["response"]])
    ids, length = real(acting, "input_ids"), int(acting["attention_mask"].sum())
    assert ids == real(learned, "input_ids")[:length], "acting sees another sequence than training"
    for key in ("expert_attention_mask", "token_type_ids"):
        if key in acting:
            assert real(acting, key) == real(learned, key)[:length], key
    without = processor(**columns(observation(SHORT)))
    seen = int(acting["expert_attention_mask"].sum()), int(without["expert_attention_mask"].sum())
    assert seen[0] > seen[1] if reads else seen[0] == seen[1]
    assert "labels" not in acting


@each_kind
@pytest.mark.parametrize("reads", [False, True])
def test_the_prompts_of_a_batch_for_training_are_those_of_inference(name, reads):
    """Where the prompt ends, and where the response does, is known to the processor alone."""
    processor = make(name, expert_reads_response=reads)
    examples = (LONG, SHORT)
    batch = processor(**columns(*examples))
    prompts = processor(**columns(*map(observation, examples)))
    assert processor.prompt_lengths(batch).tolist() == prompts["attention_mask"].sum(1).tolist()
    given = [example["response"] for example in examples]
    responded = processor(**columns(*map(observation, examples)), given_response=given)
    for with_responses, expected in ((False, prompts), (True, responded)):
        found = processor.prompts_of(batch, with_responses)
        assert found.keys() == expected.keys(), "no labels, no actions"
        for key in expected.keys() - {"action_mask"}:
            same = torch.equal(torch.as_tensor(found[key]), torch.as_tensor(expected[key]))
            assert same, f"{key}, {'with' if with_responses else 'without'} responses"


def test_prompts_of_bins_whose_first_steps_are_not_real():
    """Their tokens stand behind the prompt, though nothing of them is learned."""
    processor = make(action_tokenizer=BinningActionTokenizer(16))
    batch = processor(**columns(LONG | {"action_is_pad": [True, False, False, False]}))
    prompts = processor(**columns(observation(LONG)))
    assert torch.equal(processor.prompts_of(batch)["input_ids"], prompts["input_ids"])


def test_answers_of_a_batch_are_the_first_learned_words():
    processor = make()
    batch = processor(**columns(QUESTION, {**QUESTION, "response": "a red cup"}))
    said = [processor.tokenizer.decode(answer) for answer in processor.answers_of(batch)]
    end = processor.tokenizer.decode([processor.end_token_id])
    assert [words.strip() for words in said] == [f"a cup{end}", f"a red cup{end}"]


@each_kind
def test_the_expert_reads_the_response_exactly_if_told_to(name):
    """With the option the velocity depends on the response; in training and acting it is the same."""
    model = policy(name).eval()
    noise = torch.randn(1, CHUNK, WIDTH + 1, generator=torch.Generator().manual_seed(0))
    time = torch.tensor([1.0])
    for reads in (False, True):
        processor = make(name, expert_reads_response=reads)
        with torch.no_grad():
            velocities = [
                model(**processor(**columns({**SHORT, "response": words})), noise=noise, timestep=time).velocity
                for words in ("move to the cup", "grasp a green pen")
            ]
        if reads:
            assert (velocities[0] - velocities[1]).abs().max() > 1e-3 * velocities[0].abs().max(), "it does not read"
        else:
            assert_close_relative(*velocities, what="it reads: velocity")
        acting = processor(**columns(observation(SHORT)), given_response=["grasp a green pen"])
        chunk = model.sample_actions(**acting, noise=noise, num_steps=1)
        velocity = (noise - chunk)[..., :WIDTH]
        assert_close_relative(velocity, velocities[1][..., :WIDTH], what="velocity")


@each_kind
@pytest.mark.parametrize("reads", [False, True])
def test_adding_what_was_said_is_giving_it_at_once(name, reads):
    """`add_responses` makes the prompts of `given_response`, without the images being read again."""
    processor = make(name, expert_reads_response=reads)
    observations = [observation(LONG), observation(SHORT), observation(SHORT)]
    asked = {key: [given[key] for given in observations] for key in observations[0]}
    said = ["move to the cup", None, "grasp a green pen and go on"]
    given, added = processor(**asked, given_response=said), processor.add_responses(processor(**asked), said)
    assert given.keys() == added.keys()
    for key in given:
        assert torch.equal(torch.as_tensor(given[key]), torch.as_tensor(added[key])), key


def test_learned_and_given_response_contradict():
    with pytest.raises(ValueError, match="`response`, to be learned, and `given_response`"):
        make()(**columns(SHORT), given_response=["go"])


# ----------------------------------------------------------------------------------------------------- acting by tokens
@each_kind
def test_action_tokens_decode_to_chunks_with_and_without_cache(name):
    """Two examples of different length, of a model that knows nothing: still chunks, and the cache changes nothing."""
    processor, model = make(name), policy(name).eval()
    inputs = processor(**columns(observation(LONG), observation(SHORT)))
    chunks = model.generate_actions(processor, **inputs)
    again = model.generate_actions(processor, **inputs, use_cache=False)
    for chunk, other in zip(chunks, again, strict=True):
        assert chunk.shape == (CHUNK, WIDTH) and np.isfinite(chunk).all()
        np.testing.assert_array_equal(chunk, other)
    alone = model.generate_actions(processor, **processor(**columns(observation(SHORT))))
    np.testing.assert_array_equal(alone[0], chunks[1])


@each_kind
def test_the_last_code_is_the_last_pass(name, monkeypatch):
    """The end, which alone may follow, costs no pass; who has the longer chunk is waited for; chunks are the same."""
    bins = {"action_tokenizer": BinningActionTokenizer(16), "statistics": None, "robots": ROBOTS}
    processor, model = make(name, **bins), policy(name).eval()
    names, passes = ["arm", "cart"], []
    inputs = processor(**columns(observation(LONG), observation(CART)), robot=names)
    handle = find_language_head(model.vlm).get_output_embeddings().register_forward_hook(lambda *_: passes.append(1))
    try:
        chunks = model.generate_actions(processor, robot=names, **inputs)
        assert len(passes) == CHUNK * WIDTH, "one pass for each code of the longest chunk"
        monkeypatch.setattr(ChunkComplete, "__call__", lambda self, ids, *_, **__: torch.zeros(len(ids)).bool())
        said_to_the_end = model.generate_actions(processor, robot=names, **inputs)
    finally:
        handle.remove()
    assert len(passes) == 2 * CHUNK * WIDTH + 1, "the second time with the end"
    for chunk, other in zip(chunks, said_to_the_end, strict=True):
        np.testing.assert_array_equal(chunk, other)


def test_sampled_action_tokens_follow_the_random_state():
    processor, model = make(), policy("paligemma").eval()
    inputs = processor(**columns(observation(LONG)))
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(model.generate_actions(processor, **inputs, do_sample=True)[0])
    np.testing.assert_array_equal(draws[0], draws[1])
    assert np.abs(draws[0] - draws[2]).max() > 0


def test_a_policy_without_action_tokens_says_so():
    processor = make(action_tokenizer=None)
    with pytest.raises(ValueError, match="no action tokenizer"):
        policy("paligemma").generate_actions(processor, **processor(**columns(observation(LONG))))


# ------------------------------------------------------------------------------------------------------- several robots
SMALL = np.random.default_rng(1).normal(100.0, 5.0, (40, CHUNK, 2))  # another robot: two dimensions, other units
ROBOTS = {
    "arm": {"statistics": STATISTICS, "cameras": ["base", "wrist"]},
    "cart": {
        "statistics": {
            "actions": compute_statistics(SMALL.reshape(-1, 2)),
            "state": compute_statistics(np.random.default_rng(2).normal(7.0, 1.0, (50, 3))),
        },
        "cameras": ["front"],
    },
}
CART = {"images": [image(9)], "text": "drive", "state": np.array([7.0, 6.5, 8.0]), "actions": SMALL[0]}


def test_every_robot_has_its_own_numbers_and_cameras():
    processor = make(statistics=None, robots=ROBOTS)
    arm = make(cameras=["base", "wrist"])
    cart = make(statistics=ROBOTS["cart"]["statistics"], cameras=["front"])
    batch = processor(**columns(LONG, CART, QUESTION), robot=["arm", "cart", None])
    for i, (alone, example) in enumerate(((arm, LONG), (cart, CART))):
        single = alone(**columns(example))
        assert torch.equal(batch["actions"][i], single["actions"][0])
        assert torch.equal(batch["action_mask"][i], single["action_mask"][0])
        assert real(batch, "input_ids", i) == real(single, "input_ids")
        back = processor.unnormalize_actions(batch["actions"][i], "arm" if alone is arm else "cart")
        assert_close_relative(back, example["actions"], roundings=16, dtype=torch.float32)
    assert not batch["action_mask"][2].any()


def test_tokens_of_several_robots():
    processor, model = make(statistics=None, robots=ROBOTS), policy("paligemma").eval()
    inputs = processor(**columns(observation(LONG), observation(CART)), robot=["arm", "cart"])
    chunks = model.generate_actions(processor, **inputs)
    assert [chunk.shape for chunk in chunks] == [(CHUNK, WIDTH), (CHUNK, 2)]


@pytest.mark.parametrize("robots", [None, ROBOTS])
def test_tokens_beside_noise_in_unused_dimensions(robots):
    """With `noise_padding` the mask is of all dimensions; chunks are the robot's own all the same."""
    statistics = {} if robots is None else {"statistics": None, "robots": robots}
    examples, names = ([LONG, SHORT], [None, None]) if robots is None else ([LONG, CART], ["arm", "cart"])
    padded, plain = make(noise_padding=True, **statistics), make(**statistics)
    batch, expected = padded(**columns(*examples), robot=names), plain(**columns(*examples), robot=names)
    assert batch["action_mask"][0, 0].all() and not expected["action_mask"][0, 0].all()
    for name in ("labels", "actions"):
        assert torch.equal(batch[name], expected[name])

    model, seen = policy("paligemma").eval(), [observation(example) for example in examples]
    inputs = padded(**columns(*seen), robot=names)
    chunks = model.generate_actions(padded, robot=names, **inputs)
    for chunk, other in zip(chunks, model.generate_actions(plain, **plain(**columns(*seen), robot=names)), strict=True):
        np.testing.assert_array_equal(chunk, other)
    if robots is None:
        np.testing.assert_array_equal(model.generate_actions(padded, **inputs)[0], chunks[0])
    else:
        with pytest.raises(ValueError, match="Name one of them"):
            model.generate_actions(padded, **inputs)


def test_robots_are_saved(tmp_path):
    processor = make(statistics=None, robots=ROBOTS)
    processor.save_pretrained(tmp_path)
    loaded = KIVLAProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    other = KIVLAProcessor.from_pretrained(tmp_path, statistics=STATISTICS, cameras=["base"])
    assert other.cameras == ["base"] and list(other.robots) == [None], "a new robot in the place of all"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p(**columns(LONG)), r"Example 0: this processor has the robots \['arm', 'cart'\], got robot=None"),
        (lambda p: p(**columns(LONG), robot=["boat"]), r"\['arm', 'cart'\], got robot='boat'"),
        (
            lambda p: p(**columns({**CART, "images": LONG["images"]}), robot=["cart"]),
            r"got 2 images for 1 cameras \['front'\]",
        ),
        (lambda p: p.unnormalize_actions(np.zeros((CHUNK, 4))), "got robot=None. Name one of them"),
        (lambda p: make()(**columns(LONG), robot=["arm"]), "made for a single robot without a name, got robot='arm'"),
        (lambda p: make(robots=ROBOTS), "either `robots`, or `statistics`"),
        (lambda p: make(statistics=None, robots={}), "`robots` is empty"),
    ],
)
def test_robots_that_are_not_known_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(make(statistics=None, robots=ROBOTS))


def test_fast_fits_chunks_of_several_robots():
    assert FAST.fit([LONG["actions"] - 5, CART["actions"] - 100], vocab_size=512).vocab_size == 512


# -------------------------------------------------------------------------------------------------------------- cameras
def test_cameras_are_known_by_the_last_part_of_their_names():
    """A dataset says `observation.images.wrist`, a robot `wrist`."""
    processor = make(cameras=["observation.images.base", "observation.images.wrist"])
    base, wrist = LONG["images"]
    expected = processor(**columns(LONG))
    for names in (("base", "wrist"), ("observation.images.base", "wrist"), ("cam.base", "cam.wrist")):
        given = dict(zip(names, (base, wrist), strict=True))
        found = processor(**columns(LONG | {"images": dict(reversed(given.items()))}))
        assert torch.equal(found["pixel_values"], expected["pixel_values"]), names
    for names in (("base", "top"), ("left.wrist", "right.wrist"), ("base", "wrist", "top")):
        with pytest.raises(ValueError, match="images are given for the cameras"):
            processor(**columns(LONG | {"images": dict.fromkeys(names, base)}))


def test_cameras_with_the_same_last_part_need_their_whole_names():
    processor = make(cameras=["left.image", "right.image"])
    left, right = LONG["images"]
    expected = processor(**columns(LONG))
    found = processor(**columns(LONG | {"images": {"right.image": right, "left.image": left}}))
    assert torch.equal(found["pixel_values"], expected["pixel_values"])
    with pytest.raises(ValueError, match="images are given for the cameras"):
        processor(**columns(LONG | {"images": {"image": left, "other.image": right}}))
