"""What the options of a dataset open, and that a run knows its columns."""

import pytest

from kivla.training.run import load_evaluation, load_sources
from kivla.training.run_identity import describe, differences
from kivla.training.run_options import DataArguments, ModelArguments
from tests.helpers.lerobot_folder import write_folder
from tests.helpers.policies import DATASET


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return str(write_folder(tmp_path_factory.mktemp("data") / "arm", lengths=(5, 6, 4, 7, 5), fps=10))


def sources(root, **options):
    arguments = DataArguments(dataset=[root], max_eval_frames=2, **options)
    (data,) = loaded = load_sources(ModelArguments(vlm="none", chunk_size=3), arguments)
    return data, load_evaluation(arguments, loaded, processor=None)


def test_episodes_of_training_and_evaluation(root, tmp_path):
    data, evaluation = sources(root, episodes=["0-3"], exclude_episodes=["1"], eval_episodes=["2", "4"])
    assert data.episodes == [0, 3]
    assert evaluation["held_out"].dataset.episodes == [2, 4]
    (tmp_path / "held_out.txt").write_text("1-2 # the last take\n")
    data, evaluation = sources(root, eval_episodes=[f"@{tmp_path}/held_out.txt"])
    assert data.episodes == [0, 3, 4] and evaluation["held_out"].dataset.episodes == [1, 2]
    assert sources(root, exclude_episodes=[0])[0].episodes == [1, 2, 3, 4]
    with pytest.raises(ValueError, match=r"not among those to use: \[9\]"):
        sources(root, exclude_episodes=["9"])
    for options in ({"eval_episodes": ["0-4"]}, {"episodes": ["1-2"], "eval_episodes": ["1", "2"]}):
        with pytest.raises(
            ValueError, match=r"--eval_episodes holds out all \d episodes .* nothing is left to train on"
        ):
            sources(root, **options)


def test_columns_are_those_of_the_evaluation_too(root):
    data, evaluation = sources(root, action_key=["action[0:2]", "action[6:7]"], state_key=["none"], eval_episodes=[1])
    held_out = evaluation["held_out"].dataset
    assert data.action_key == held_out.action_key == ["action[0:2]", "action[6:7]"]
    assert (data.action_dim, data.state_dim, held_out.state_dim) == (3, 0, 0)


def test_a_run_goes_on_with_the_same_columns_only(root):
    usual, other = (describe(sources(root, **options)[0]) for options in ({}, {"action_key": ["observation.state"]}))
    assert "action_key" not in usual, "a run from before there was a choice goes on"
    rest = {"facts": {}, "versions": {}}
    lines = differences({"data": usual, **rest}, {"data": other, **rest})
    assert any("data.action_key: was (nothing), is [observation.state]" in line for line in lines)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"action_key": ["a"], "dataset_format": "mine:Mine"}, "--action_key cannot apply: it is for LeRobot datasets"),
        ({"stream_gb": 5}, "--stream_gb cannot apply: it is for --streaming true"),
        ({"streaming": True, "dataset_format": "mine:Mine"}, "--streaming cannot apply: it is for LeRobot datasets"),
        ({"streaming": True, "question_share": 0.1}, "--question_share cannot apply: the questions are about frames"),
        ({"exclude_episodes": ["1-3"], "eval_episodes": ["0", "3"]}, r"_episodes both name the episodes \[3\]"),
        ({"episodes": ["one"]}, "--episodes takes numbers, ranges"),
        ({"dataset": ["a", "b"], "robots": ["x", "y"], "exclude_episodes": [1]}, "are for a single dataset"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(ValueError, match=message):
        DataArguments(**({"dataset": [str(DATASET)]} | options))
