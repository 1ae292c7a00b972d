"""What a policy looks back on: which frames, which of them are there, and what the VLM and the expert get of them."""

import logging

import numpy as np
import pytest

from kivla.processing import BinningActionTokenizer, KIVLAProcessor, RelativeActions, robot_spec
from kivla.processing.observation_history import (
    NO_HISTORY,
    ObservationHistory,
    clip_of,
    flat_size,
    flat_states,
    state_rows,
    unbroken,
    with_past,
)
from tests.helpers.vlm_processors import KINDS

HISTORY = ObservationHistory(3, 4)
STATES = np.array([[0.1, -0.4], [0.5, 0.0], [-0.9, 0.3]])
STATISTICS = {
    name: {key: np.full(2, value) for key, value in (("q01", -1.0), ("q99", 1.0), ("min", -1.0), ("max", 1.0))}
    | {"mean": np.zeros(2), "std": np.ones(2)}
    for name in ("state", "actions")
}


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (10, 12, 3), dtype=np.uint8)


def make_processor(kind: str = "paligemma", **options) -> KIVLAProcessor:
    defaults = {
        "action_tokenizer": BinningActionTokenizer(num_bins=16),
        "statistics": STATISTICS,
        "cameras": ["front", "wrist"],
        "chunk_size": 4,
        "max_action_dim": 2,
        "history": 3,
        "history_stride": 4,
    }
    return KIVLAProcessor(KINDS[kind].processor(), **{**defaults, **options})


def make_batch(processor: KIVLAProcessor, images, state=STATES[2], **others):
    return processor(images=[images], text=["go"], state=[state], **others)


def assert_same(batch, other):
    assert batch.keys() == other.keys()
    for name, values in batch.items():
        np.testing.assert_array_equal(np.asarray(values), np.asarray(other[name]), err_msg=name)


@pytest.mark.parametrize("frames", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 7])
def test_the_steps_are_those_of_the_definition(frames, stride):
    history = ObservationHistory(frames, stride if frames > 1 else 1)
    for step in range(40):
        wanted = [step - back * history.stride for back in reversed(range(frames))]
        assert history.steps(step) == [number for number in wanted if number >= 0]
    assert history.reach == (frames - 1) * history.stride


@pytest.mark.parametrize(("frames", "stride"), [(0, 1), (2, 0), (True, 1), (2.0, 1), (2, "4"), (1, 4)])
def test_other_numbers_are_refused(frames, stride):
    with pytest.raises(ValueError, match="history"):
        ObservationHistory(frames, stride)


def test_a_clip_ends_at_a_gap():
    a, b, c = "abc"
    assert unbroken([a, b, c]) == [a, b, c]
    assert unbroken([None, b, c]) == [b, c]
    assert unbroken([a, None, c]) == [c]  # not a as if it were b
    assert unbroken([a, b, None]) == []  # nothing old in the place of the present


def test_a_picture_is_a_clip_of_one_and_longer_ones_are_refused():
    one = picture(0)
    assert clip_of(None, HISTORY) == []
    assert clip_of(one, HISTORY)[0] is one
    assert len(clip_of(np.stack([one, one]), HISTORY)) == 2
    for clip in ([one] * 4, np.stack([one] * 4), []):
        with pytest.raises(ValueError, match=f"a clip of {len(clip)} frames, and this policy sees 3 frames, 4 control"):
            clip_of(clip, HISTORY)
    with pytest.raises(ValueError, match="sees the present frame alone"):
        clip_of([one, one], NO_HISTORY)


def test_states_are_rows_and_one_vector_that_says_which_are_there():
    assert state_rows(STATES[0], NO_HISTORY).tolist() == [STATES[0].tolist()]
    for wrong in (STATES, STATES[None]):
        with pytest.raises(ValueError, match=r"`state` must be one vector \(Ds,\)"):
            state_rows(wrong, NO_HISTORY)
    whole = flat_states(STATES, HISTORY)
    assert len(whole) == flat_size(2, HISTORY) == 8
    np.testing.assert_allclose(whole, [*STATES[2], *STATES[1], *STATES[0], 1, 1], rtol=1e-6)
    np.testing.assert_allclose(flat_states(STATES[1:], HISTORY), [*STATES[2], *STATES[1], 0, 0, 1, 0], rtol=1e-6)
    np.testing.assert_allclose(flat_states(STATES[2:], HISTORY), [*STATES[2], 0, 0, 0, 0, 0, 0], rtol=1e-6)
    np.testing.assert_array_equal(flat_states(STATES[:1], NO_HISTORY), STATES[0].astype(np.float32))


def test_images_are_by_camera_and_then_by_time():
    processor = make_processor(state_encoding="none")
    front, wrist = [picture(i) for i in range(3)], [picture(i) for i in range(3, 6)]
    batch = make_batch(processor, {"wrist": wrist, "front": front})
    plain = make_processor(state_encoding="none", history=1, history_stride=1, cameras=list("abcdef"))
    assert_same(batch, make_batch(plain, [*front, *wrist]))
    # An array is the same clip
    assert_same(batch, make_batch(processor, [np.stack(front), np.stack(wrist)]))


@pytest.mark.parametrize("kind", ["paligemma", "qwen2_vl", "smolvlm"])
def test_the_first_step_is_that_of_a_policy_without_history(kind):
    """Nothing stands in for frames that are not there: neither images nor states."""
    processor, plain = make_processor(kind), make_processor(kind, history=1, history_stride=1)
    now = {"front": picture(0), "wrist": picture(1)}
    first = make_batch(processor, {name: [image] for name, image in now.items()}, STATES[2:])
    assert_same(first, make_batch(plain, now))
    assert_same(first, make_batch(processor, now))
    gap = make_batch(processor, {name: [picture(7), None, image] for name, image in now.items()}, STATES[2:])
    assert_same(first, gap)


def test_a_camera_without_its_newest_frame_is_missing():
    processor = make_processor(state_encoding="none")
    batch = make_batch(processor, {"front": [picture(0), None], "wrist": [picture(1)]})
    assert_same(batch, make_batch(processor, {"front": None, "wrist": [picture(1)]}))


def test_the_prompt_has_the_states_oldest_first():
    processor = make_processor(state_encoding="text", cameras=[])
    prompts = [processor.decode(make_batch(processor, [], state)["input_ids"][0]) for state in (STATES, STATES[2])]
    assert "State: 140 76 | 191 127 | 12 166;" in prompts[0]
    assert "State: 12 166;" in prompts[1]


def test_a_continuous_state_has_room_for_all_of_them():
    vlm = KINDS["paligemma"].processor()
    options = {"statistics": STATISTICS, "chunk_size": 4, "max_action_dim": 2, "state_encoding": "continuous"}
    processor = KIVLAProcessor(vlm, **options, max_state_dim=8, history=3, history_stride=4)
    np.testing.assert_allclose(
        make_batch(processor, [], STATES)["state"][0], [*STATES[2], *STATES[1], *STATES[0], 1, 1], atol=1e-6
    )
    with pytest.raises(ValueError, match=r"`state` has 8 values \(3 states, and which .* max_state_dim is 7"):
        make_batch(KIVLAProcessor(vlm, **options, max_state_dim=7, history=3, history_stride=4), [], STATES)


def test_actions_are_relative_to_the_newest_state():
    relative = {"relative_actions": STATISTICS["actions"]}
    options = {"statistics": {**STATISTICS, **relative}, "relative_actions": RelativeActions((0, 1)), "cameras": []}
    processor, plain = make_processor(**options), make_processor(**options, history=1, history_stride=1)
    actions = [np.tile(STATES[2], (4, 1))]
    batch = make_batch(processor, [], STATES, actions=actions)
    np.testing.assert_allclose(batch["actions"][0], 0, atol=1e-6)
    np.testing.assert_array_equal(batch["actions"], make_batch(plain, [], STATES[2], actions=actions)["actions"])
    assert processor.newest_state(STATES).tolist() == STATES[2].tolist() == processor.newest_state(STATES[2]).tolist()
    assert processor.newest_state(None) is None


def test_questions_about_pictures_have_no_clips():
    processor = make_processor(state_encoding="none")
    with pytest.raises(ValueError, match="a clip of 2 frames, and this policy sees the present frame alone"):
        processor(images=[[[picture(0), picture(1)]]], text=["What is it?"], response=["a cup"])


def test_it_is_saved_and_older_policies_say_nothing_of_it(tmp_path):
    make_processor().save_pretrained(tmp_path / "new")
    loaded = KIVLAProcessor.from_pretrained(tmp_path / "new")
    assert loaded.observation_history == HISTORY
    assert (loaded.history, loaded.history_stride) == (3, 4)
    assert "history" not in make_processor(history=1, history_stride=1).to_dict()


def test_single_pictures_are_said_once(caplog):
    robot_spec._say_single.cache_clear()
    processor, now = make_processor(state_encoding="none"), [picture(0), picture(1)]
    with caplog.at_level(logging.WARNING, logger="kivla"):
        make_batch(processor, [[image] for image in now])  # a clip of one is meant
        assert not caplog.records
        for _ in range(2):
            make_batch(processor, now)
    assert [record.getMessage()[:59] for record in caplog.records] == [
        "The policy sees 3 frames, 4 control steps apart, and is giv"
    ]


@pytest.mark.parametrize("form", ["by name", "in a list"])
def test_a_past_becomes_clips(form):
    def observation(seed: int) -> dict:
        images = {"front": picture(seed), "wrist": picture(seed + 10)}
        return {"images": images if form == "by name" else list(images.values()), "state": STATES[seed]}

    merged = with_past({**observation(2), "text": "go", "past": [observation(0), observation(1)]}, HISTORY)
    front = merged["images"]["front"] if form == "by name" else merged["images"][0]
    np.testing.assert_array_equal(front, [picture(0), picture(1), picture(2)])
    np.testing.assert_allclose(merged["state"], STATES)
    assert merged["text"] == "go" and "past" not in merged
    # What is missing cuts off what was before; an empty past is an episode's first step
    gap = with_past({**observation(2), "past": [observation(0), None]}, HISTORY)
    np.testing.assert_allclose(gap["state"], STATES[2:])
    first = with_past({**observation(2), "past": []}, HISTORY)["images"]
    assert [len(clip) for clip in (first.values() if form == "by name" else first)] == [1, 1]
    assert with_past(observation(2), HISTORY).keys() == observation(2).keys()  # nothing is said of a past


def test_a_past_that_does_not_fit_is_refused():
    now = {"images": [picture(0)], "state": STATES[0]}
    with pytest.raises(ValueError, match="`past` has 3 earlier observations, and this policy sees 3 frames"):
        with_past({**now, "past": [now] * 3}, HISTORY)
    with pytest.raises(ValueError, match=r"clips .* and a `past` beside them"):
        with_past({"images": [[picture(0)]], "past": [now]}, HISTORY)
