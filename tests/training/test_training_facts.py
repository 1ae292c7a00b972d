"""What a policy's training facts say of data that it is to go on with."""

import json
from types import SimpleNamespace

from kivla.training.training_facts import FACTS, other_than_trained


def test_another_rate_and_other_names_than_a_policy_was_trained_on_are_said(tmp_path):
    row = {"name": None, "fps": 30, "action_names": ["pan", "lift"], "state_names": ["state 0", "state 1"]}
    (tmp_path / FACTS).write_text(json.dumps({"robots": [row]}))

    def said(robot=None, fps=30, action_names=("pan", "lift"), state_names=("a", "b")):
        names = {"action_names": action_names, "state_names": state_names}
        return other_than_trained(str(tmp_path), SimpleNamespace(name="data", robot=robot, fps=fps, **names))

    assert said() == [], "numbers in place of names are no names"
    (rate,) = said(fps=15)
    assert "data has 15 frames a second" in rate and "30" in rate
    (names,) = said(action_names=("pan", "grip"))
    assert "action dimensions" in names and "first 'grip' where that had 'lift'" in names
    assert said(robot="other", fps=15) == said(action_names=None) == []
    (tmp_path / FACTS).unlink()
    assert said(fps=15) == [], "a policy without facts"
