"""Faults that are planted in a clean dataset are found, each by its name, and nothing else is."""

import json
import shutil
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageFilter

from kivla import LeRobotDataset
from kivla.cli import main
from kivla.training.data.checks.dimensions import measure
from kivla.training.data.checks.episodes import check_gaps, check_rate, time_gaps, time_taken
from kivla.training.data.checks.findings import RULES
from kivla.training.data.checks.motion import measure_lag
from kivla.training.data.checks.pictures import are_same, block_means, blur
from kivla.training.data.checks.report import check_data
from kivla.training.data.checks.spikes import Spikes
from kivla.training.data.episode_dataset import EpisodeDataset
from kivla.training.data.lerobot.key_frames import read_key_frames
from kivla.training.data.lerobot.writer import LeRobotWriter
from kivla.training.evaluation.data_plot import draw_episode
from kivla.training.policy_options import PolicyOptions
from kivla.training.run import look_at
from tests.helpers.lerobot_folder import CAMERA, write_folder
from tests.helpers.lerobot_v21 import decode
from tests.helpers.policies import DATASET

FPS, LENGTH, EPISODES, SIDE = 10, 60, 8, 64
NAMES = ["shoulder", "elbow", "wrist", "gripper"]
TEXTS = ("pick up the cup", "open the drawer")


class Made(EpisodeDataset):
    """An arm that moves and stops, seen by two cameras; it follows its commands two frames late.

    Args:
        faults: functions, or names of those in `FAULTS`: each spoils something.
        count: how many episodes.
    """

    def __init__(self, faults=(), chunk_size=1, episodes=None, cameras=None, robot=None, count=EPISODES):
        rng = np.random.default_rng(0)
        self.texts = {episode: TEXTS[episode % 2] for episode in range(count)}
        self.arrays, self.pictures = {}, {}
        for episode in range(count):
            goals = rng.uniform(-1, 1, (3, 3))
            # To one goal, to the next, and rest there: cosines have no corner at either end.
            way = (1 - np.cos(np.linspace(0, np.pi, 25)))[:, None] / 2
            ways = [way * (end - start) + start for start, end in pairwise(goals)]
            arm = np.concatenate([*ways, np.repeat(goals[-1:], LENGTH - 50, axis=0)])
            grip = (np.arange(LENGTH) > 24).astype(float)[:, None]
            actions = np.hstack([arm, grip])
            state = actions[np.maximum(np.arange(LENGTH) - 2, 0)] + rng.normal(0, 1e-4, actions.shape)
            self.arrays[episode] = {"actions": actions, "state": state}
            self.pictures[episode] = {"front": _pictures(state[:, :2], rng), "wrist": _pictures(state[:, 1:3], rng)}
        for spoil in faults:
            (FAULTS[spoil] if isinstance(spoil, str) else spoil)(self)
        lengths = {episode: len(arrays["actions"]) for episode, arrays in self.arrays.items()}
        names = {"action_names": NAMES, "state_names": NAMES}
        layout = {"lengths": lengths, "all_cameras": ["front", "wrist"], "fps": FPS, **names}
        super().__init__("made", chunk_size, episodes, cameras, robot, **layout)

    def read_vectors(self, episode):
        return self.arrays[episode]

    def read_images(self, episode, frame):
        return [self.pictures[episode][camera][frame] for camera in self.cameras]

    def read_text(self, episode, frame):
        return self.texts[episode]


def _pictures(places, rng):
    """A bright spot that moves with the arm over a pattern with edges; `places` (T, 2) lie in [-1, 1]."""
    ground = np.kron(rng.integers(40, 160, (SIDE // 4, SIDE // 4, 3)), np.ones((4, 4, 1)))
    pixel = np.linspace(-1.2, 1.2, SIDE)
    rows, columns = (pixel - places[:, [axis]] for axis in (0, 1))  # (T, SIDE) each
    spot = np.exp(-50 * (rows[:, :, None] ** 2 + columns[:, None] ** 2))[..., None]
    return (ground + (255 - ground) * spot).astype(np.uint8)


FAULTS = {}


def fault(function):
    FAULTS[function.__name__] = function
    return function


@fault
def constant(data):
    for arrays in data.arrays.values():
        arrays["actions"][:, 2] = arrays["state"][:, 2] = 0.5


@fault
def all_constant(data):
    for arrays in data.arrays.values():
        arrays["actions"][:] = 0.5


@fault
def rare(data):
    for arrays in data.arrays.values():
        arrays["actions"][:, 1] *= 1e-3
    data.arrays[3]["actions"][20:24, 1] = [0.3, 0.7, 0.7, 0.3]


@fault
def clipped(data):
    for arrays in data.arrays.values():
        arrays["actions"][:, 0] = arrays["actions"][:, 0].clip(-0.2, 0.2)


@fault
def jump(data):
    data.arrays[5]["state"][40, 1] += 3


@fault
def in_steps(data):
    rng = np.random.default_rng(1)
    for arrays in data.arrays.values():  # a gripper that opens to any width at once
        arrays["actions"][:, 3] = np.repeat(rng.uniform(0, 1, 3), LENGTH // 3)
        arrays["state"][:, 3] = arrays["actions"][np.maximum(np.arange(LENGTH) - 2, 0), 3]


@fault
def stuck(data):
    data.arrays[2]["state"][30:40] = data.arrays[2]["state"][30]


@fault
def repeated_rows(data):
    for arrays in data.arrays.values():
        arrays["state"][1::2] = arrays["state"][::2]


@fault
def state_first(data):
    for arrays in data.arrays.values():
        arrays["actions"] = np.concatenate([np.repeat(arrays["state"][:1], 3, axis=0), arrays["state"][:-3]])


@fault
def action_is_state(data):
    for arrays in data.arrays.values():
        arrays["actions"] = arrays["state"].copy()


def _cut(data, episode, length):
    data.arrays[episode] = {name: values[:length] for name, values in data.arrays[episode].items()}
    data.pictures[episode] = {name: values[:length] for name, values in data.pictures[episode].items()}


@fault
def ends_moving(data):
    _cut(data, 1, 38)


@fault
def short_episode(data):
    for values in data.arrays[6].values():
        values[6:14] = values[6]  # it ends at rest all the same
    _cut(data, 6, 12)


@fault
def same_episode(data):
    data.arrays[7] = data.arrays[4]
    data.pictures[7] = data.pictures[4]


@fault
def other_units(data):
    for values in data.arrays[3].values():
        values[:, :3] = np.degrees(values[:, :3])


@fault
def other_scale(data):
    data.arrays[6]["actions"][:, 1] *= 1000


@fault
def still_actions(data):
    data.arrays[6]["actions"][:] = 0


@fault
def zeros(data):
    data.arrays[1]["actions"][12:16] = 0


@fault
def no_text(data):
    data.texts[0] = ""


@fault
def placeholder(data):
    data.texts[2] = "test"


@fault
def spellings(data):
    data.texts[4] = "Pick up  the cup."


def _each(data, camera, change):
    for pictures in data.pictures.values():
        pictures[camera] = change(pictures[camera])


@fault
def black(data):
    _each(data, "wrist", lambda images: images // 200)


@fault
def dark(data):
    _each(data, "wrist", lambda images: images // 8)


@fault
def bright(data):
    _each(data, "wrist", lambda images: images // 16 + 240)


@fault
def blurred(data):
    def change(images):
        soft = ImageFilter.GaussianBlur(4)
        return np.stack([np.asarray(Image.fromarray(image).filter(soft)) for image in images])

    _each(data, "wrist", change)


@fault
def same_camera(data):
    for pictures in data.pictures.values():
        pictures["wrist"] = pictures["front"]


@fault
def frozen_camera(data):
    _each(data, "wrist", lambda images: np.repeat(data.pictures[0]["wrist"][:1], len(images), axis=0))


@fault
def frozen(data):
    data.pictures[0]["wrist"][:] = data.pictures[0]["wrist"][0]


@fault
def repeated_pictures(data):
    _each(data, "wrist", lambda images: images[np.arange(len(images)) // 2 * 2])


@fault
def alternating(data):
    def change(images):
        images = images.copy()
        images[::2] = images[::2, ::-1]
        return images

    _each(data, "wrist", change)


@fault
def unreadable(data):
    def read_images(episode, frame):
        raise ValueError(f"episode {episode}, frame {frame} is damaged")

    data.read_images = read_images


def codes(report, worse_than_note=True):
    return {finding.code for finding in report.findings if finding.level != "note" or not worse_than_note}


ALWAYS = {"lag"}  # a fact, as long as the state follows the actions


@pytest.mark.parametrize("name", [None, *FAULTS])
def test_a_planted_fault_is_found_and_nothing_else(name):
    report = check_data(Made([name] if name else []), progress=False)
    found = codes(report, worse_than_note=False)
    assert found - ALWAYS == ({name} if name else set()), [finding.text for finding in report.findings]
    if name:
        assert report.has_failed() == (RULES[name].level == "error")


def test_a_twin_with_many_faults_has_these_and_no_others():
    planted = {"rare", "clipped", "jump", "stuck", "ends_moving", "same_episode", "placeholder", "spellings", "blurred"}
    report = check_data(Made(sorted(planted)), progress=False)
    assert codes(report, worse_than_note=False) - ALWAYS == planted, [finding.text for finding in report.findings]


@pytest.mark.parametrize("spoilt", ["other_units", "other_scale", "still_actions"])
def test_an_episode_that_is_wrong_as_a_whole_hides_nothing_in_others(spoilt):
    found = found_in(spoilt, "stuck", "jump", "zeros")
    assert set(found) == {spoilt, "stuck", "jump", "zeros"}
    assert [found[name].episodes for name in ("stuck", "jump", "zeros")] == [(2,), (5,), (1,)]


@pytest.mark.parametrize("place", [None, 0.5])
def test_a_joint_that_moves_or_rests_elsewhere_in_one_episode_alone_is_at_no_other_scale(place):
    def at_rest(data):
        rng = np.random.default_rng(0)
        for episode, arrays in data.arrays.items():
            for values in arrays.values():
                if episode != 3:
                    values[:, 1] = rng.normal(0, 1e-4, LENGTH)
                elif place is not None:
                    values[:, 1] = rng.normal(place, 1e-4, LENGTH)

    assert "other_scale" not in found_in(at_rest)


def test_two_episodes_at_another_scale_do_not_hide_each_other():
    def scale(data):
        for episode in (2, 6):
            data.arrays[episode]["actions"][:, 1] *= 1000

    (finding,) = found_in(scale).values()
    assert (finding.code, finding.episodes, finding.dimensions) == ("other_scale", (2, 6), ("elbow",))


@pytest.mark.parametrize(("times", "which"), [(1000, [3]), (np.degrees(1), [3, 5]), (1 / np.degrees(1), [3])])
def test_units_of_any_kind(times, which):
    """Millimetres among metres, degrees among radians, radians among degrees."""

    def change(data):
        for episode in which:
            for values in data.arrays[episode].values():
                values[:, :3] *= times

    assert set(found_in(change)) == {"other_units"}
    findings = [one for one in check_data(Made([change]), progress=False).findings if one.code == "other_units"]
    assert [one.vector for one in findings] == ["actions", "state"]
    assert all(one.episodes == tuple(which) for one in findings)
    assert all(("smaller" if times < 1 else "larger") in one.text for one in findings)


@pytest.mark.parametrize(("still", "count"), [(5, 8), (1, 2), (2, 3)])
def test_actions_that_were_not_recorded_in_most_episodes(still, count):
    def stop(data):
        for episode in range(still):
            data.arrays[episode]["actions"][:] = 0

    (finding,) = found_in(stop, count=count).values()
    assert (finding.code, finding.episodes) == ("still_actions", tuple(range(still)))


def test_a_dataset_of_which_every_episode_is_wrong_is_looked_at():
    def spoil(data):
        for episode in range(3):
            data.arrays[episode]["actions"][:] = 0
        data.arrays[3]["state"][:, :3] *= np.degrees(1)

    assert {"still_actions", "other_units"} <= set(found_in(spoil, count=4))


@pytest.mark.parametrize("vector", ["actions", "state"])
def test_frames_of_zeros_are_told_once(vector):
    def zero(data, frames):
        data.arrays[1][vector][frames] = 0

    for frames in (slice(12, 13), slice(12, 16), slice(0, 2)):
        (finding,) = found_in(lambda data, frames=frames: zero(data, frames)).values()
        assert (finding.code, finding.vector) == ("zeros", vector)
        assert finding.places == tuple((1, frame) for frame in range(frames.start, frames.stop))

    def home(data):  # it goes there slowly, and rests
        for arrays in data.arrays.values():
            for values in arrays.values():
                values *= np.clip(np.arange(LENGTH)[::-1] - 9, 0, 20)[:, None] / 20
                values[-10:] = 0

    assert "zeros" not in found_in(home)


def test_what_is_said_of_a_fault_says_where_it_is():
    report = check_data(Made(["jump", "frozen", "spellings", "rare"]), progress=False)
    found = {finding.code: finding for finding in report.findings}
    assert found["jump"].episodes == (5,) and found["jump"].dimensions == ("elbow",) and found["jump"].vector == "state"
    assert "episode 5 frame 40" in found["jump"].text
    assert found["frozen"].camera == "wrist" and found["frozen"].episodes == (0,)
    assert found["rare"].dimensions == ("elbow",) and found["rare"].vector == "actions"
    assert set(found["spellings"].episodes) == {0, 2, 4, 6}
    levels = [finding.level for finding in report.findings]
    assert levels == sorted(levels, key=("error", "warning", "note").index), "worst first"
    assert not report.has_failed() and report.has_failed(strict=True)


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_the_lag_is_measured(frames):
    def delay(data):
        for arrays in data.arrays.values():
            arrays["state"] = arrays["actions"][np.maximum(np.arange(LENGTH) - frames, 0)]

    lag = check_data(Made([delay]), progress=False).lag
    assert lag.frames == frames and lag.meaning == "positions" and lag.correlation > 0.99


def found_in(*faults, **options):
    """Code → finding, but for what is always there."""
    findings = check_data(Made(faults, **options), progress=False).findings
    return {finding.code: finding for finding in findings if finding.code not in ALWAYS}


def test_a_spike_in_the_commands_alone_is_seen():
    def spike(data):
        data.arrays[5]["actions"][40, 1] += 3

    (finding,) = found_in(spike).values()
    assert (finding.code, finding.vector, finding.places) == ("jump", "actions", ((5, 40),))


@pytest.mark.parametrize("vector", ["actions", "state"])
@pytest.mark.parametrize("size", [1.5, 300])
def test_a_larger_spike_is_no_smaller_fault(vector, size):
    """A joint that hardly ever moves only because of the spike is no rare one."""

    def spike(data):
        data.arrays[5][vector][40, 1] += size

    (finding,) = found_in(spike).values()
    assert (finding.code, finding.vector, finding.places) == ("jump", vector, ((5, 40),))


def test_a_command_that_nothing_follows_is_a_fault():
    def still_joint(data):
        for arrays in data.arrays.values():
            arrays["actions"][:, 1] = arrays["state"][:, 1] = 0.5
        data.arrays[5]["actions"][40, 1] = 0

    found = found_in(still_joint)
    assert set(found) == {"jump", "constant"} and found["jump"].vector == "actions"


@pytest.mark.parametrize("change", [np.diff, None], ids=["changes", "no state"])
def test_spikes_of_any_actions_are_seen_far_outside_of_all_others(change):
    """Changes may go there and back in a frame, but not far beyond all others."""
    rng = np.random.default_rng(0)

    def actions(data, size):
        for arrays in data.arrays.values():
            if change is None:
                del arrays["state"]
            else:
                arrays["actions"] = change(arrays["state"], axis=0, append=arrays["state"][-1:])
                arrays["actions"] += rng.normal(0, 1e-3, arrays["actions"].shape)
        data.arrays[5]["actions"][57, 1] += size * np.ptp(data.arrays[5]["actions"][:, 1])

    (finding,) = found_in(lambda data: actions(data, 8)).values()
    assert (finding.code, finding.vector, finding.places) == ("jump", "actions", ((5, 57),))
    assert not found_in(lambda data: actions(data, 0))


def test_a_spike_of_some_frames_is_one():
    values = np.sin(np.linspace(0, 3, 90))[:, None]
    values[40:43] += 2
    table = measure("actions", None, 1, lambda: [values.astype(np.float32)])
    found = {}
    for fps in (10, 20):
        gathered = Spikes(table, np.quantile(np.abs(np.diff(values, axis=0)), 0.9, axis=0), fps)
        gathered.add(0, values)
        found[fps], _ = gathered.judge(True, np.full(1, np.inf))
    assert found == {10: {}, 20: {0: [(0, 40)]}}, "0.3 s may be a motion, 0.15 s is none"


def test_commands_that_go_to_a_place_at_once_are_no_spikes():
    def step(data):
        for arrays in data.arrays.values():
            arrays["actions"][40:, 1] = arrays["actions"][-1, 1]

    assert not found_in(step)


def test_a_copy_with_a_little_noise_is_a_copy():
    def copy(data):
        noise = np.random.default_rng(0).normal(0, 1e-5, (LENGTH, 4))
        data.arrays[7] = {name: values + noise for name, values in data.arrays[4].items()}

    (finding,) = found_in(copy).values()
    assert finding.code == "same_episode" and finding.episodes == (4, 7)


@pytest.mark.parametrize("vector", ["actions", "state"])
def test_joints_that_are_exchanged_in_one_episode_are_noted(vector):
    def exchange(data):
        data.arrays[3][vector][:, [0, 2]] = data.arrays[3][vector][:, [2, 0]]

    (finding,) = found_in(exchange, count=24).values()
    assert (finding.code, finding.level) == ("exchanged", "note")
    assert finding.episodes == (3,) and finding.dimensions == ("shoulder", "wrist")


def test_the_rate_is_measured_between_gaps():
    lost = np.r_[np.arange(30), np.arange(31, 61)] / 8
    seconds, steps = time_taken(lost)
    assert steps / seconds == pytest.approx(8)
    assert check_rate(seconds, steps, 10)[0].code == "other_rate" and not check_rate(seconds, steps, 8)
    assert time_taken(np.zeros(5)) == time_taken(np.full(5, np.nan)) == (0, 0)


@pytest.mark.parametrize(("times", "videos"), [(9.7, 10), (10, 9.7), (10, 10)])
def test_another_rate_than_the_data_is_said_to_have(times, videos, tmp_path):
    def clock(columns, episode):
        columns["timestamp"] = np.round(np.arange(len(columns["timestamp"])) / times, 3)  # in ms, as many write them

    data = LeRobotDataset(write_folder(tmp_path / "data", video_fps=videos, edit_columns=clock))
    texts = [finding.text for finding in check_data(data, progress=False).findings if finding.code == "other_rate"]
    assert ["By its timestamps" in text for text in texts] == [True] * (times < 10) + [False] * (videos < 10)
    assert all("9.7" in text for text in texts)


def test_an_angle_that_begins_anew_is_named():
    def turn(data):
        for arrays in data.arrays.values():
            arrays["state"][:, 1] = np.mod(np.linspace(0, 9, LENGTH), 2 * np.pi) - np.pi

    found = {finding.code: finding.text for finding in check_data(Made([turn]), progress=False).findings}
    assert "whole turn" in found["jump"] and "8 times" in found["jump"]


@pytest.mark.parametrize(("frames", "notes"), [(2, 0), (4, 0), (1, 1)])
def test_the_motion_of_a_rare_dimension_is_no_jump(frames, notes):
    """It goes out in one frame and stays; what is back in the next may be a touch or a bad reading, and is noted."""

    def move(data):
        rng = np.random.default_rng(0)
        for arrays in data.arrays.values():
            arrays["state"][:, 1] = rng.normal(0, 1e-3, LENGTH)
        data.arrays[3]["state"][20 : 20 + frames, 1] = 0.7

    found = [finding.code for finding in check_data(Made([move]), progress=False).findings]
    assert "jump" not in found and found.count("rare_jump") == notes and "rare" in found


def test_slow_motion_is_not_taken_for_a_shift():
    """The state of slow motion is much like itself a frame earlier or later; a little noise decides which is more."""
    rng = np.random.default_rng(0)
    waves = [np.sin(np.linspace(0, 3, 200)[:, None] + rng.uniform(0, 6, (1, 4))) for _ in range(8)]
    for noise in (1e-3, 1e-2, 5e-2):
        actions, states = ([wave + rng.normal(0, noise, wave.shape) for wave in waves] for _ in range(2))
        tables = measure("actions", NAMES, 4, lambda a=actions: a), measure("state", NAMES, 4, lambda s=states: s)
        assert measure_lag(zip(actions, states, strict=True), *tables, fps=10).frames >= 0


@pytest.mark.parametrize("length", [1, 2, 3])
def test_episodes_of_a_few_frames(length):
    report = check_data(
        Made([lambda data: [_cut(data, episode, length) for episode in range(EPISODES)]]), progress=False
    )
    assert not report.has_failed(), [finding.text for finding in report.findings]


def test_any_words_can_be_drawn(tmp_path):
    data = Made([no_state, lambda data: data.texts.update({0: "pay $5 or $x^{ for the cup"})], cameras=["wrist"])
    draw_episode(tmp_path / "episode.png", data, check_data(data, progress=False))
    assert (tmp_path / "episode.png").stat().st_size > 10_000


def no_state(data):
    for arrays in data.arrays.values():
        del arrays["state"]


@pytest.mark.parametrize("quick", [False, True])
def test_a_camera_that_hangs_in_every_episode_is_seen(quick):
    def hang(data):
        for pictures in data.pictures.values():  # each on its own picture
            pictures["wrist"][:] = pictures["wrist"][0]

    findings = check_data(Made([hang]), quick, progress=False).findings
    (finding,) = [finding for finding in findings if finding.code not in ALWAYS]
    assert finding.code == "frozen" and finding.camera == "wrist" and len(finding.episodes) == (2 if quick else 6)


def test_a_camera_that_hangs_in_the_middle_of_an_episode_is_seen():
    def hang(data):
        data.pictures[0]["wrist"][20:] = data.pictures[0]["wrist"][20]

    (finding,) = found_in(hang).values()
    assert finding.code == "frozen" and finding.episodes == (0,)


@pytest.mark.parametrize("begin", [lambda data: 0, lambda data: data.pictures[0]["wrist"][0]], ids=["black", "home"])
def test_a_quick_look_is_not_misled_by_how_episodes_begin(begin):
    def spoil(data):
        first = begin(data)
        for pictures in data.pictures.values():
            pictures["wrist"][:2] = first

    findings = check_data(Made([spoil]), quick=True, progress=False).findings
    assert {finding.code for finding in findings} == ALWAYS, [finding.text for finding in findings]


@pytest.mark.parametrize(
    "options", [{"crf": "18", "g": "2", "bf": "0"}, {"crf": "23", "g": "2"}, {"crf": "30"}], ids=str
)
def test_a_picture_is_the_same_however_it_is_compressed(options, tmp_path):
    """Key frames and others are compressed anew each, and look a little different."""
    front = Made().pictures[0]["front"]
    for frames, moves in ((front[[10] * 12], False), (front[[10] * 6 + [16] * 6], True)):
        path = tmp_path / f"{moves}.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=FPS, options=options)
            stream.height, stream.width, stream.pix_fmt = SIDE, SIDE, "yuv420p"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
            container.mux(stream.encode())
        with av.open(str(path)) as container:
            blocks = [block_means(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
        assert all(are_same(blocks[0], other) for other in blocks) != moves


def not_finite(data):
    data.arrays[2]["actions"][30, 1] = np.nan
    data.arrays[2]["state"][30:32, 0] = np.inf


class Raw(Made):
    takes_unfinite = True


def test_numbers_that_are_none_hide_nothing_else():
    planted = ["jump", "same_episode", "clipped", "frozen"]
    findings = check_data(Raw([*planted, not_finite]), progress=False).findings
    assert {finding.code for finding in findings} == ALWAYS | {"not_finite", *planted}
    found = {f.vector: (f.episodes, f.dimensions, f.places) for f in findings if f.code == "not_finite"}
    assert found == {"actions": ((2,), ("elbow",), ((2, 30),)), "state": ((2,), ("shoulder",), ((2, 30), (2, 31)))}
    with pytest.raises(ValueError, match="NaN or infinite at frame 30"):
        Made([not_finite])


def test_a_dataset_without_cameras_is_a_warning():
    (finding,) = [f for f in check_data(Made(cameras=[]), progress=False).findings if f.code not in ALWAYS]
    assert (finding.code, finding.level) == ("no_camera", "warning")


def test_time_gaps():
    times = np.arange(20) / FPS
    times[12:] += 0.3
    assert time_gaps(times, FPS).tolist() == [12]
    assert time_gaps(np.arange(20) / 29.97 + 7, 30).tolist() == []
    uneven = np.arange(40) / FPS + np.random.default_rng(0).uniform(-0.04, 0.04, 40)
    assert np.diff(uneven).max() * FPS > 1.5 and not len(time_gaps(uneven, FPS)), "measured times are not lost frames"
    (finding,) = check_gaps({4: (1, 0.4)}, 100)
    assert finding.code == "time_gap" and finding.episodes == (4,)


def test_blur_grows_with_blur():
    sharp = np.kron(np.random.default_rng(0).integers(0, 255, (12, 12)), np.ones((6, 6)))
    soft = np.mean([np.roll(sharp, shift, 1) for shift in range(-3, 4)], axis=0)
    softer = np.mean([np.roll(soft, shift, 1) for shift in range(-6, 7)], axis=0)
    assert blur(sharp) < 0.3 < blur(soft) < blur(softer)
    assert blur(np.full((48, 48), 100.0)) == 0, "a picture of nothing is not blurred"


def test_the_page_has_the_table_of_rules():
    page = (Path(__file__).parents[4] / "docs/check_data.md").read_text()
    for code, rule in RULES.items():
        limit = "" if rule.limit is None else f"{rule.limit:g}"
        assert f"| `{code}` | {rule.level} | {limit} | {rule.why} |" in page, f"docs/check_data.md has no row of {code}"


def test_training_prints_warnings_and_ends_at_errors(capsys):
    look_at([Made(["jump"])], PolicyOptions())
    assert "Warning (made): elbow of the state jumps" in capsys.readouterr().out
    told = {"relative_actions": ["elbow"], "wrapping_angles": ["elbow=-2:2"]}
    look_at([Made(["jump"])], PolicyOptions(**told))
    assert "jumps" not in capsys.readouterr().out, "it was said that this angle wraps"
    with pytest.raises(ValueError, match=r"made cannot be trained on: The actions never change.*--check_data false"):
        look_at([Made(["all_constant"])], PolicyOptions())


# --------------------------------------------------------------------------------------------------- LeRobot's folders
def test_the_sample_gives_no_warning(tmp_path, capsys):
    files = ["--json", f"{tmp_path}/report.json", "--plot", f"{tmp_path}/episode.png"]
    main(["check-data", str(DATASET), "--strict", *files])
    printed, report = capsys.readouterr().out, json.loads((tmp_path / "report.json").read_text())
    assert "0 errors, 0 warnings" in printed and "gripper" in printed
    assert {finding["level"] for finding in report["findings"]} == {"note"}
    assert len(report["dimensions"]["actions"]["min"]) == len(report["dimensions"]["state"]["names"]) == 4
    assert (tmp_path / "episode.png").stat().st_size > 10_000


def test_options_that_cannot_be(tmp_path, capsys):
    for options, said in (
        (["--plot_episode", "1"], "there is no --plot"),
        (["--plot", f"{tmp_path}/episode.png", "--plot_episode", "9"], "episode 9 is not among"),
        (["--json", str(tmp_path)], f"{tmp_path} is a folder. Name a file."),
        (["--plot", str(tmp_path)], f"{tmp_path} is a folder. Name a file."),
    ):
        with pytest.raises(SystemExit) as status:
            main(["check-data", str(DATASET), *options])
        assert status.value.code == 2 and said in capsys.readouterr().err


def test_a_camera_that_is_not_named_is_a_warning(tmp_path):
    folder = write_folder(tmp_path / "data", edit_info=lambda info: info["features"].pop(CAMERA))
    found = {finding.code: finding for finding in check_data(LeRobotDataset(folder, 1), progress=False).findings}
    assert found["unnamed_camera"].camera == CAMERA and found["unnamed_camera"].level == "warning"
    assert "no_camera" in found


def test_a_tolerance_without_videos_is_refused(tmp_path, capsys):
    folder = write_folder(tmp_path / "data", edit_info=lambda info: info["features"].pop(CAMERA))
    shutil.rmtree(Path(folder) / "videos")
    with pytest.raises(SystemExit) as status:
        main(["check-data", str(folder), "--tolerance_s", "0.1"])
    assert status.value.code == 2
    assert "--tolerance_s cannot apply: no camera of the data is stored as video" in capsys.readouterr().err


def test_a_folder_with_numbers_that_are_none_is_told_as_any(tmp_path, capsys):
    folder = shutil.copytree(DATASET, tmp_path / "twin")
    (file,) = folder.glob("data/*/*.parquet")
    table = pq.read_table(file)
    actions = table["action"].to_pylist()
    actions[7][2] = float("nan")
    place = table.column_names.index("action")
    pq.write_table(table.set_column(place, "action", pa.array(actions, table.schema.field("action").type)), file)
    with pytest.raises(SystemExit) as status:
        main(["check-data", str(folder), "--plot", f"{tmp_path}/episode.png"])
    printed = capsys.readouterr().out
    assert status.value.code == 1 and "1 error, 0 warnings" in printed and "NaN or infinity in 1 frame" in printed
    assert "episode 0 frame 7" in printed and "gripper" in printed
    with pytest.raises(ValueError, match="NaN or infinity"):
        LeRobotDataset(folder, 1)


PLANTED = {"rare", "clipped", "jump", "ends_moving", "placeholder", "dark", "repeated_pictures"}


@pytest.mark.parametrize("planted", [set(), PLANTED - {"dark"}, PLANTED - {"repeated_pictures"}], ids=len)
def test_a_folder_and_its_broken_twins(planted, tmp_path, capsys):
    made = Made(sorted(planted))
    sizes = dict.fromkeys(made.cameras, (SIDE, SIDE))
    with LeRobotWriter(tmp_path / "twin", FPS, sizes, NAMES, NAMES, "arm", image_format="video") as writer:
        for episode, arrays in made.arrays.items():
            vectors = (arrays["state"].astype(np.float32), arrays["actions"].astype(np.float32))
            writer.add_episode(made.pictures[episode], *vectors, task=made.texts[episode])
    try:
        main(["check-data", str(tmp_path / "twin"), "--json", f"{tmp_path}/report.json"])
    except SystemExit as status:
        pytest.fail(f"exit status {status.code}: {capsys.readouterr().out}")
    found = {finding["code"] for finding in json.loads((tmp_path / "report.json").read_text())["findings"]}
    assert found - ALWAYS == planted, capsys.readouterr().out


def test_columns_with_sub_tasks_are_named(tmp_path):
    folder = shutil.copytree(DATASET, tmp_path / "twin")
    (file,) = folder.glob("data/*/*.parquet")
    table = pq.read_table(file)
    pq.write_table(table.append_column("subtask", pa.array(["reach"] * len(table))), file)
    info = json.loads((folder / "meta/info.json").read_text())
    info["features"]["subtask"] = {"dtype": "string", "shape": [1], "names": None}
    (folder / "meta/info.json").write_text(json.dumps(info))
    found = {finding.code: finding.text for finding in check_data(LeRobotDataset(folder, 1), progress=False).findings}
    assert "subtask: --subtask_key" in found["language"]


def test_features_that_say_nothing_do_not_matter(tmp_path):
    def edit(info):
        info["features"] |= {"strange": {}, "number": {"dtype": 7}, "subtask": {"dtype": None}}

    data = LeRobotDataset(write_folder(tmp_path / "data", edit_info=edit))
    (finding,) = [one for one in check_data(data, progress=False).findings if one.code == "language"]
    assert "in subtask:" in finding.text


def test_what_the_reader_refuses_is_an_error(tmp_path, capsys):
    with pytest.raises(SystemExit) as status:
        main(["check-data", str(tmp_path), "--json", f"{tmp_path}/report.json"])
    assert status.value.code == 1
    assert "cannot_open" in capsys.readouterr().out
    assert json.loads((tmp_path / "report.json").read_text())["findings"][0]["code"] == "cannot_open"


def test_sparse_key_frames_are_a_warning(tmp_path, capsys):
    folder = shutil.copytree(DATASET, tmp_path / "twin")
    (video,) = folder.glob("videos/*/*/*.mp4")
    encode(decode(video), video, fps=80, distance=250)
    key_frames = read_key_frames(video)
    assert key_frames.key_frames == 1 and key_frames.decoded == pytest.approx((182 + 1) / 2)
    with pytest.raises(SystemExit) as status:
        main(["check-data", str(folder), "--strict"])
    printed = capsys.readouterr().out
    assert status.value.code == 1 and "1 warning" in printed
    assert "key_frames" in printed and "kivla transcode" in printed


def test_a_video_that_begins_without_a_key_frame_is_seen(tmp_path):
    whole, late = tmp_path / "whole.mp4", tmp_path / "late.mp4"
    encode(decode(DATASET / "videos/observation.images.corner2/chunk-000/file-000.mp4")[:20], whole, fps=80, distance=8)
    with av.open(str(whole)) as source, av.open(str(late), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in [packet for packet in source.demux(video=0) if packet.dts is not None][3:]:
            packet.stream = stream
            target.mux(packet)
    assert read_key_frames(whole).starts_with_one and read_key_frames(whole).key_frames == 3
    assert not read_key_frames(late).starts_with_one


def encode(frames: list[np.ndarray], path: Path, fps: int, distance: int) -> None:
    with av.open(str(path), "w") as container:
        options = {"qp": "0", "preset": "ultrafast", "g": str(distance), "x264-params": "scenecut=0"}
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.height, stream.width, stream.pix_fmt = frames[0].shape[0] * 2 // 3, frames[0].shape[1], "yuv420p"
        for number, planes in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
