"""Lessons of rising difficulty: what each shows, that the last has all, and that a demo that was stopped goes on."""

import json

import numpy as np
import pytest

from kivla import KIVLAProcessor, LeRobotDataset
from kivla.demo.curriculum import lessons_of, record_lessons, teach_lessons
from kivla.demo.stages import TabletopArguments
from kivla.named_models import TABLETOP_VLM
from kivla.simulation.tabletop.tasks import TASK_KINDS


@pytest.mark.parametrize("kinds", [["touch"], ["touch", "touch_then_touch"]])
def test_touching_is_one_lesson(kinds):
    (lesson,) = lessons_of(TabletopArguments(kinds=kinds))
    assert lesson.kinds == kinds and lesson.share == 1 and lesson.name == ""


@pytest.mark.parametrize(
    ("kinds", "shown"),
    [
        (["move"], [["touch"], ["move"]]),
        (["put"], [["touch"], ["put"]]),
        (["touch_then_touch", "push"], [["touch_then_touch"], ["touch_then_touch", "push"]]),
        (
            ["touch", "move", "put"],
            [["touch"], ["touch", "move", "put"], ["touch", "move", "put", "put", "put"]],
        ),
    ],
)
def test_holding_comes_after_touching(kinds, shown):
    lessons = lessons_of(TabletopArguments(kinds=kinds))
    assert [lesson.kinds for lesson in lessons] == shown
    assert set(lessons[-1].kinds) == set(kinds) and lessons[-1].name == ""
    assert sum(lesson.share for lesson in lessons) == pytest.approx(1)
    assert len(lessons_of(TabletopArguments(kinds=kinds, curriculum=False))) == 1


def test_empty_grips_are_of_tasks_that_hold():
    for kind in TASK_KINDS:
        share = TabletopArguments(kinds=[kind]).empty_grip_share
        assert share == (0.0 if kind.startswith("touch") else 0.3)
    assert TabletopArguments(kinds=["move"], empty_grips=0.0).empty_grip_share == 0


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lessons")
    args = TabletopArguments(
        kinds=["put", "move"],
        num_demonstrations=4,
        batch_size=2,
        num_flow_samples=1,
        expert_hidden_size=16,
        expert_intermediate_size=16,
        question_share=0.0,
        action_vocab_size=64,
    )
    recorded = record_lessons(folder, args)
    return folder, args, recorded, teach_lessons(TABLETOP_VLM, folder, args, 5, seed=0)


def test_every_lesson_is_trained_once(taught):
    folder, args, recorded, result = taught
    assert recorded["episodes"] == 3 * args.num_demonstrations
    assert [json.loads((folder / f"{name}.json").read_text())["max_steps"] for name in _files()] == [1, 2, 2]
    assert result["max_steps"] == 5
    assert [entry["step"] for entry in result["log_history"] if "loss" in entry] == [1, 2, 3, 4, 5]
    before = (folder / "policy" / "model.safetensors").stat().st_mtime_ns
    assert teach_lessons(TABLETOP_VLM, folder, args, 5, seed=0) == result
    assert (folder / "policy" / "model.safetensors").stat().st_mtime_ns == before, "what is there was done again"


def test_the_first_lesson_knows_a_gripper_that_closes(taught):
    """It never sees one, and is trained for what is to come."""
    folder, *_ = taught
    touching = LeRobotDataset(folder / "demonstrations_touch", 1)
    assert {float(touching[i]["actions"][0, 2]) for i in range(len(touching))} == {-1.0}
    first, last = (
        KIVLAProcessor.from_pretrained(folder / name).robot().statistics["actions"]
        for name in ("policy_touch", "policy")
    )
    for name, values in last.items():
        np.testing.assert_array_equal(first[name], values, err_msg=name)
    assert last["max"][2] > last["min"][2], "the gripper is a constant"


def _files() -> list[str]:
    return ["lesson_touch", "lesson_all", "lesson"]
