"""`kivla rollout` from end to end: a tiny random policy in the smallest environment."""

import json
import re
from dataclasses import asdict
from typing import ClassVar

import av
import numpy as np
import pytest
from PIL import Image
from transformers import pipeline

import tests.helpers.fake_reach  # noqa: F401, registers "fake-reach"
from kivla.cli import main
from kivla.simulation.environments import parse_options
from kivla.simulation.report_media import choose_episodes, title
from kivla.simulation.rollout import PipelinePolicy, rollout
from kivla.simulation.rollout_evaluation import (
    evaluate,
    format_rates,
    format_report,
    replay,
    success_rate,
    video_format,
    write_media,
    write_phases,
)
from kivla.training.evaluation.confidence import mcnemar_test, paired_difference, wilson_interval
from tests.helpers.fake_reach import COLORS, FakeReachVectorEnv, ReachPolicy
from tests.helpers.policies import dataset, make_policy

CAMERA = dataset().cameras[0]
OPTIONS = ["--env", "fake-reach", "--env_options", f"camera={CAMERA}", "action_dim=4", "--max_steps", "6"]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    model, processor = make_policy(folder / "vlm")
    model.resize_token_embeddings(processor.vocab_size)
    model.save_pretrained(folder / "policy")
    processor.save_pretrained(folder / "policy")
    return str(folder / "policy")


@pytest.fixture(scope="module")
def rolled_out(policy, tmp_path_factory):
    """The folder and what was printed, of a comparison of a policy with itself."""
    folder = tmp_path_factory.mktemp("rollout") / "new"
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr("builtins.print", lambda *words, **_: printed.append(" ".join(map(str, words))))
        counts = ["--num_episodes", "5", "--num_envs", "2", "--num_videos", "2", "--first_seed", "50"]
        main(
            ["rollout", policy, "--compare", policy, *OPTIONS, *counts, "--num_steps", "2", "--output_dir", str(folder)]
        )
    return folder, "\n".join(printed)


def test_json_has_what_happened(rolled_out, policy):
    report = json.loads((rolled_out[0] / "rollout.json").read_text())
    assert report["replan_every"] == 3, "half of the chunk"
    pipe = pipeline("action-prediction", model=policy)
    env = FakeReachVectorEnv(5, camera=CAMERA, action_dim=4)
    expected = rollout(PipelinePolicy(pipe, num_steps=2), env, range(50, 55), replan_every=3, max_steps=6)
    for figures in report["policies"]:
        seen = [(e["seed"], e["instruction"], e["success"], e["steps"]) for e in figures["episodes"]]
        assert seen == [(e.seed, e.instruction, e.success, e.steps) for e in expected.episodes]
        swapped = figures["swapped"]
        assert not {(e["seed"], e["instruction"]) for e in figures["episodes"]} & {
            (e["seed"], e["instruction"]) for e in swapped["episodes"]
        }
        for rate, name, episodes in (
            (figures["success"], "success", figures["episodes"]),
            (swapped["original"], "success", swapped["episodes"]),
            (swapped["swapped"], "swapped_success", swapped["episodes"]),
        ):
            assert rate["successes"] == sum(e[name] for e in episodes) and rate["episodes"] == 5
            assert (rate["low"], rate["high"]) == wilson_interval(rate["successes"], 5)
    assert report["comparison"]["p_value"] == 1.0 and report["comparison"]["only_first"] == 0


@pytest.mark.parametrize("way", ["sync", "naive", "ensemble", "rtc"])
def test_a_policy_that_takes_time_acts_in_every_way(policy, tmp_path, capsys, way):
    few = ["--num_episodes", "2", "--num_envs", "2", "--num_videos", "0", "--num_steps", "2", "--swapped", "false"]
    late = ["--way", way, "--latency_steps", "2", "--fresh_noise", "true"]
    main(["rollout", policy, *OPTIONS, *few, *late, "--output_dir", str(tmp_path / "new")])
    printed = capsys.readouterr().out
    assert f"re-planning every 3 steps, {way}, 2 steps late" in printed
    (figures,) = json.loads((tmp_path / "new" / "rollout.json").read_text())["policies"]
    assert (figures["mean_held_steps"] > 0) == (way == "sync") and figures["mean_squared_jerk"] > 0
    for episode in figures["episodes"]:
        assert episode["jerk"] > 0 and episode["held_steps"] == (2 if way == "sync" else 0)


def test_a_way_that_the_policy_was_not_trained_for_is_refused(policy, tmp_path):
    with pytest.raises(SystemExit, match="rtc_max_delay = 0"):
        main(["rollout", policy, *OPTIONS, "--way", "rtc-trained", "--output_dir", str(tmp_path / "new")])


def test_the_media_open(rolled_out):
    folder, _ = rolled_out
    media = json.loads((folder / "rollout.json").read_text())["media"]
    assert Image.open(folder / media["contact_sheet"]).size[0] > 500
    assert len(media["videos"]) == 2
    for video in media["videos"]:
        with av.open(str(folder / video["file"])) as container:
            assert sum(1 for _ in container.decode(video=0)) > 1


def rows(printed: str) -> list[tuple[float, ...]]:
    """Rate, interval, successes and episodes of each row of the table."""
    pattern = r"instruction.* ([\d.]+) % +([\d.]+) - ([\d.]+) % +(\d+) / (\d+)"
    return [tuple(float(value) for value in found) for found in re.findall(pattern, printed)]


def test_what_is_printed_is_what_is_in_the_json(rolled_out):
    folder, printed = rolled_out
    report = json.loads((folder / "rollout.json").read_text())
    rates = []
    for figures in report["policies"]:
        rates += [figures["success"], figures["swapped"]["original"], figures["swapped"]["swapped"]]
    assert len(rows(printed)) == len(rates) == 6
    for row, rate in zip(rows(printed), rates, strict=True):
        percent = [100 * rate[name] for name in ("rate", "low", "high")]
        np.testing.assert_allclose(row, [*percent, rate["successes"], rate["episodes"]], atol=0.051)
    assert "p = 1.0000 (McNemar" in printed and str(folder) in printed


def test_the_json_says_how_the_policy_acted(rolled_out, policy):
    """What was told, and where nothing was, the policy's own."""
    reports = json.loads((rolled_out[0] / "rollout.json").read_text())["policies"]
    acted = [[report[name] for name in ("dtype", "num_steps", "noise_scale")] for report in reports]
    assert acted == [["float32", 2, 1.0]] * 2
    pipe = pipeline("action-prediction", model=policy)
    assert PipelinePolicy(pipe, noise_scale=0.0).acts_with["noise_scale"] == 0.0
    by_tokens = PipelinePolicy(pipe, acts_by="tokens", noise_scale=0.5)
    assert by_tokens.acts_with == {"dtype": "float32", "num_steps": None, "noise_scale": None}
    with pytest.raises(ValueError, match="noise_scale is for the action expert"):
        by_tokens.check_options()


class WordsVectorEnv(FakeReachVectorEnv):
    """The same, told in words that were never demonstrated."""

    words: ClassVar = {"red": "crimson", "blue": "azure"}

    def reset(self, seed, options=None):
        observation, info = super().reset(seed, options)
        colors = [list(self.words)[target] for target in self.target]
        new = [self.words[color] for color in colors]
        if options is None:
            info["instruction"] = self.instruction = [f"touch {word}" for word in new]
        return observation, {**info, "word": new, "plain_instruction": [f"touch {color}" for color in colors]}


class KnowsCrimson(ReachPolicy):
    def _chunk(self, observation):
        meaning = {"touch crimson": "touch red", "touch azure": "touch red"}
        return super()._chunk({**observation, "text": meaning.get(observation["text"], observation["text"])})


def test_words_that_were_never_demonstrated_are_compared_with_those_that_were():
    figures, result = evaluate(KnowsCrimson(), WordsVectorEnv(8), range(20), replan_every=2, max_steps=20)
    plain = figures["plain"]
    assert figures["success"]["rate"] == 0.5 and plain["success"]["rate"] == 1.0
    assert plain["difference"] == asdict(paired_difference(result.success, [True] * 20))
    assert plain["p_value"] == pytest.approx(2 / 2**10)
    rates = {word: (row["success"]["rate"], row["plain"]["rate"]) for word, row in plain["words"].items()}
    assert rates == {"crimson": (1.0, 1.0), "azure": (0.0, 1.0)}
    assert [episode["word"] for episode in figures["episodes"]] == ["crimson", "azure"] * 10
    assert [episode["instruction"] for episode in plain["episodes"]] == ["touch red", "touch blue"] * 10
    assert figures["swapped"]["original"]["rate"] == 0.0, "the control is as ever"
    printed = format_rates(json.loads(json.dumps(figures)))
    assert re.search(r"words never demonstrated +50.0 %", printed) and "true instruction" not in printed
    assert re.search(r"the same in demonstrated words +100.0 %", printed)
    assert "in the same scenes: -50.0 points (-" in printed
    assert re.search(r"    azure +0.0 %.* 0 / 10", printed)


def test_figures_of_policies_that_are_known():
    env, seeds = FakeReachVectorEnv(8), range(20)
    reads, result = evaluate(ReachPolicy(), env, seeds, replan_every=2, max_steps=20)
    blind, blind_result = evaluate(ReachPolicy("red"), env, seeds, replan_every=2, max_steps=20)
    assert (reads["success"]["rate"], reads["swapped"]["original"]["rate"]) == (1.0, 0.0)
    assert reads["swapped"]["swapped"]["rate"] == 1.0
    assert blind["success"]["rate"] == blind["swapped"]["original"]["rate"] == 0.5
    assert all(episode.frames is None for episode in result.episodes), "frames are for those that are shown"
    assert mcnemar_test(result.success, blind_result.success).p_value == pytest.approx(2 / 2**10)
    assert json.loads(json.dumps(reads)) == reads

    report = {"env": "fake", "replan_every": 2, "comparison": None, "policies": [{"policy": "p", **reads}]}
    assert rows(format_report(report)) == [(100, 83.9, 100, 20, 20), (0, 0, 16.1, 0, 20), (100, 83.9, 100, 20, 20)]


class PhasesVectorEnv(FakeReachVectorEnv):
    """The same, and how far each copy came with what it was told."""

    def _info(self):
        told = np.array([list(COLORS).index(text.split()[-1]) for text in self.instruction])
        done, right = self.touched >= 0, self.touched == told
        phases = [
            {"touched a dot": bool(a), "touched the named one": bool(b)} for a, b in zip(done, right, strict=True)
        ]
        return {**super()._info(), "phases": phases}


def test_where_a_policy_fails_is_counted(tmp_path):
    """One that does not read, and one that does nothing: in JSON, table, title and picture."""
    seeds, options = range(20), {"replan_every": 2, "max_steps": 20}
    blind, result = evaluate(ReachPolicy("red"), PhasesVectorEnv(8), seeds, **options)
    names = ["touched a dot", "touched the named one"]
    for phases in (blind["phases"], blind["swapped"]["phases"]):  # of the swapped ones, how far it came with these
        assert [phase["name"] for phase in phases] == names
        assert [phase["reached"] for phase in phases] == [success_rate([True] * 20), success_rate([True, False] * 10)]
        assert [phase["stopped"] for phase in phases] == [0, 10]
    assert [episode["stopped_before"] for episode in blind["episodes"]] == [None, names[1]] * 10
    assert blind["phases"] == evaluate(ReachPolicy("red"), PhasesVectorEnv(3), seeds, **options)[0]["phases"]
    idle, _ = evaluate(rest, PhasesVectorEnv(8), seeds, **options)
    assert [phase["stopped"] for phase in idle["phases"]] == [20, 0]

    printed = format_rates(json.loads(json.dumps(blind)))
    assert re.search(r"how far it came +reached", printed) and len(rows(printed)) == 3
    assert len(re.findall(r"    touched the named one +50.0 %.* 10 / 20 +10\n?", printed)) == 2
    assert title(result.episodes[1]).endswith(f'failure, decided early (3 steps, seed 1), stopped before "{names[1]}"')
    assert write_phases(tmp_path, blind) == "phases.png" and Image.open(tmp_path / "phases.png").size[0] > 500
    plain, _ = evaluate(ReachPolicy(), FakeReachVectorEnv(8), seeds, **options)
    assert plain["phases"] is None and write_phases(tmp_path, plain) is None and "how far" not in format_rates(plain)


class TasksVectorEnv(FakeReachVectorEnv):
    """The same, and every scene's task has a name."""

    def _info(self):
        return {**super()._info(), "task": [["red", "blue"][target] for target in self.target]}


def test_several_tasks_are_counted_one_by_one():
    options = {"replan_every": 2, "max_steps": 20}
    figures, _ = evaluate(ReachPolicy("red"), TasksVectorEnv(8), range(20), **options)
    rates = {name: {what: rate["rate"] for what, rate in task.items()} for name, task in figures["tasks"].items()}
    assert rates["red"] == {"success": 1.0, "time_outs": 0.0, "original": 1.0, "swapped": 0.0}
    assert rates["blue"] == {"success": 0.0, "time_outs": 0.0, "original": 0.0, "swapped": 1.0}
    printed = format_rates(json.loads(json.dumps(figures)))
    assert re.search(r"  red +100.0 %.* 10 / 10\n      swapped, original done +100.0 %", printed)
    idle, _ = evaluate(rest, TasksVectorEnv(3), range(5), **options, swapped=False)
    assert idle["time_outs"] == success_rate([True] * 5)
    assert idle["tasks"]["red"] == {"success": success_rate([False] * 3), "time_outs": success_rate([True] * 3)}
    assert evaluate(rest, FakeReachVectorEnv(3), range(5), **options)[0]["tasks"] is None


def test_phases_that_are_none_are_refused():
    class Wrong(FakeReachVectorEnv):
        def _info(self):
            return {**super()._info(), "phases": ["touched"] * self.num_envs}

    with pytest.raises(ValueError, match=r"info\['phases'\] must be a mapping for each copy"):
        evaluate(ReachPolicy(), Wrong(2), range(2), replan_every=2, max_steps=4)


def test_rare_failures_are_found_and_shown():
    """The two failures among 60 episodes, wherever they are, and as many successes; and only they are kept."""
    env, seeds = FakeReachVectorEnv(8), range(60)
    result = rollout(ReachPolicy(), env, seeds, replan_every=2, max_steps=20)
    assert result.success.all()
    for failed in (3, 59):
        result.episodes[failed].success = False  # as if
    assert [episode.seed for episode in choose_episodes(result.episodes, 4)] == [3, 59, 0, 1]
    shown = replay(ReachPolicy(), env, result.episodes, 4, replan_every=2, max_steps=20)
    found = [episode.seed for episode in shown]
    assert found == [0, 1, 2, 4], "what comes out otherwise is not shown as what it was, and others are in its place"

    blind = rollout(ReachPolicy("red"), env, seeds, replan_every=2, max_steps=20)
    shown = replay(ReachPolicy("red"), env, blind.episodes, 4, replan_every=2, max_steps=20)
    assert [episode.success for episode in shown] == [False, False, True, True]
    for episode in shown:
        (first,) = [e for e in blind.episodes if e.seed == episode.seed]
        assert (episode.instruction, episode.steps) == (first.instruction, first.steps)
        assert len(episode.frames) == episode.steps + 1


def rest(observations):
    """A policy that does nothing."""
    return np.zeros((len(observations), 4, 2))


@pytest.mark.parametrize(("policy", "outcome"), [(ReachPolicy(), True), (rest, False)])
def test_all_right_all_wrong_and_a_single_episode(policy, outcome, tmp_path):
    for count in (1, 5):
        env = FakeReachVectorEnv(4)
        figures, result = evaluate(policy, env, range(count), replan_every=2, max_steps=20)
        assert figures["success"]["rate"] == float(outcome)
        shown = replay(policy, env, result.episodes, 8, replan_every=2, max_steps=20)
        media = write_media(tmp_path, shown, env.fps, "gif")
        assert [video["success"] for video in media["videos"]] == [outcome] * count
    assert write_media(tmp_path, replay(policy, env, [], 8, 2, 20), env.fps, "gif") == {
        "contact_sheet": None,
        "videos": [],
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [(["camera=other", "action_dim=4"], "none is of"), ([f"camera={CAMERA}", "action_dim=5"], "of another robot")],
)
def test_another_robots_environment_is_refused(policy, options, message, tmp_path):
    words = ["--env", "fake-reach", "--num_episodes", "1", "--num_steps", "1", "--output_dir", str(tmp_path)]
    with pytest.raises(SystemExit, match=message):
        main(["rollout", policy, *words, "--num_videos", "0", "--env_options", *options])


def test_without_pyav_mp4_is_refused_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr("kivla.simulation.rollout_evaluation.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="mp4 needs PyAV"):
        main(["rollout", "nowhere", "--output_dir", str(tmp_path / "out")])
    assert video_format() == "gif"


def test_without_the_control():
    figures, _ = evaluate(ReachPolicy(), FakeReachVectorEnv(2), range(2), replan_every=2, max_steps=20, swapped=False)
    assert figures["swapped"] is None
    report = {"env": "fake", "replan_every": 2, "comparison": None, "policies": [{"policy": "p", **figures}]}
    assert len(rows(format_report(report))) == 1


def test_success_rate():
    rate = success_rate([True, False, True, True])
    assert (rate["successes"], rate["episodes"], rate["rate"]) == (3, 4, 0.75)
    assert rate["low"] < 0.75 < rate["high"]


def test_options_of_environments():
    parsed = parse_options(["size=48", "tasks=[touch, push]", "camera=top", "hard=true"])
    assert parsed == {"size": 48, "tasks": ["touch", "push"], "camera": "top", "hard": True}
    with pytest.raises(ValueError, match="NAME=VALUE, got 'size'"):
        parse_options(["size"])


def test_other_video_formats_are_refused_before_anything_runs(tmp_path):
    with pytest.raises(SystemExit, match="mp4 or gif, not 'avi'"):
        main(["rollout", "nowhere", "--video_format", "avi", "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
