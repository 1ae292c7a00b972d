"""Both heads on one picture: paths are where the gripper would go, and moments are those of the episode."""

import numpy as np
import pytest
from PIL import Image

from kivla.demo import two_heads
from kivla.processing.observation_history import ObservationHistory
from kivla.simulation import TabletopVectorEnv
from kivla.simulation.rollout import Episode


class TwoHeads:
    """What is used of `pipeline("action-prediction")`: its expert goes right, open; its VLM closes the gripper."""

    def __init__(self, acts_by="flow", tokenizer="fast"):
        self.model = type("Model", (), {"config": type("Config", (), {"acts_by": acts_by})})
        facts = {"action_tokenizer": tokenizer, "cameras": ["top"], "expert_reads_response": False}
        self.processor = type("Processor", (), {**facts, "responds_first": False})
        self.observation_history = ObservationHistory()

    def __call__(self, observations, acts_by="flow", **options):
        way = [1.0, 0.0, -1.0] if acts_by == "flow" else [0.0, 0.0, 1.0]
        return [{"actions": np.tile(way, (4, 1))} for _ in observations]


def test_the_path_is_where_the_gripper_goes():
    env, chunk = TabletopVectorEnv(1, image_size=24), np.array([[1.0, -0.5, -1], [2.0, 0.0, -1], [-0.3, 0.1, -1]])
    observation, _ = env.reset(seed=[3])
    path = two_heads.path_of(observation["state"][0, :2], chunk)
    for point, action in zip(path[1:], chunk, strict=True):
        observation, *_ = env.step(action[None])
        np.testing.assert_allclose(observation["state"][0, :2], point, atol=1e-6)
    assert (two_heads.path_of(np.array([0.9, 0.0]), chunk)[-2] <= 0.95).all(), "it stays on the table"


def test_moments_are_the_first_plan_and_the_last():
    moments = two_heads.moments_of(TwoHeads(), {"image_size": 24, "max_steps": 9}, Episode(5, "", False, None, 9), 2)
    assert [moment.step for moment in moments] == [0, 4, 8]
    for moment in moments:
        np.testing.assert_array_equal(moment.by_expert[0], [1, 0, -1])
        np.testing.assert_array_equal(moment.by_tokens[0], [0, 0, 1])
    assert moments[1].observation["state"][0] > moments[0].observation["state"][0]


@pytest.mark.parametrize(
    ("pipe", "drawn"), [(TwoHeads(), True), (TwoHeads("tokens"), False), (TwoHeads(tokenizer=None), False)]
)
def test_it_is_drawn_of_policies_that_have_both(tmp_path, pipe, drawn):
    episodes = [Episode(seed, "touch it", seed == 5, None, 3) for seed in (4, 5)]
    path = tmp_path / "two_heads.png"
    assert two_heads.draw_two_heads(path, pipe, {"image_size": 24, "max_steps": 3}, episodes, 2) == drawn
    assert path.is_file() == drawn and (not drawn or Image.open(path).size[1] > 500)
    assert not two_heads.draw_two_heads(path, pipe, {}, [], 2)
