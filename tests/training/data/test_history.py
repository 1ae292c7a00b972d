"""Examples with a history: the frames and states of this episode, one decode call for each camera, one augmentation."""

import numpy as np
import pytest

from kivla import LeRobotDataset
from kivla.processing.observation_history import NO_HISTORY, ObservationHistory
from kivla.training.data.augmentation import AUGMENTATIONS, ExampleAugmentation
from kivla.training.data.dataset_checks import check_dataset
from kivla.training.data.lerobot.frame_questions import FrameQuestions
from kivla.training.data.lerobot.video import VideoReader, VideoReaders
from kivla.training.data.robot_dataset import RobotDataset
from tests.helpers.policies import DATASET, make_policy
from tests.training.data.lerobot.test_video import SOURCE, decode_rgb
from tests.training.test_episode_dataset import InMemory

HISTORY = ObservationHistory(3, 5)


@pytest.fixture(scope="module")
def plain() -> LeRobotDataset:
    return LeRobotDataset(DATASET, 4)


@pytest.mark.parametrize("reader", [LeRobotDataset, InMemory])
@pytest.mark.parametrize("frame_cache_mb", [0, 10])
def test_an_item_has_the_frames_and_states_of_its_own_episode(reader, frame_cache_mb, plain):
    if reader is InMemory and frame_cache_mb:
        pytest.skip("only LeRobot's reader has a cache")
    options = {"frame_cache_mb": frame_cache_mb} if frame_cache_mb else {}
    data = reader(DATASET, 4, **options).look_back(HISTORY)
    second = data.episode_range(data.episodes[1])
    for item in (0, 4, 5, 12, second.start, second.start + 7, second.start + 30, len(data) - 1):
        example, now = data[item], plain[item]
        moments = [plain[item - now["frame_index"] + frame] for frame in HISTORY.steps(now["frame_index"])]
        assert {moment["episode_index"] for moment in moments} == {now["episode_index"]}
        for camera, clip in enumerate(example["images"]):
            np.testing.assert_array_equal(clip, [moment["images"][camera] for moment in moments])
        np.testing.assert_array_equal(example["state"], [moment["state"] for moment in moments])
        np.testing.assert_array_equal(example["actions"], now["actions"])
        assert data.size_of(item) == (len(moments) * len(data.cameras), plain.size_of(item)[1])
    assert data.content_digest == reader(DATASET, 4).content_digest


def test_it_can_be_told_to_the_reader_and_taken_back(plain):
    data = LeRobotDataset(DATASET, 4, history=3, history_stride=5)
    assert data.observation_history == HISTORY
    assert data.look_back(NO_HISTORY)[20]["images"][0].shape == plain[20]["images"][0].shape


def test_a_reader_of_single_frames_says_so():
    class Single(LeRobotDataset):
        look_back = RobotDataset.look_back

    with pytest.raises(ValueError, match=r"Single reads single frames, and cannot look back \(3 frames, 5 control"):
        Single(DATASET, 4, history=3, history_stride=5)
    assert len(Single(DATASET, 4))


def test_frames_are_read_by_one_call_for_each_camera(monkeypatch):
    data, calls = LeRobotDataset(DATASET, 4).look_back(HISTORY), []
    read = VideoReaders.read
    monkeypatch.setattr(
        VideoReaders, "read", lambda self, path, numbers: calls.append(numbers) or read(self, path, numbers)
    )
    data[20]
    assert [len(numbers) for numbers in calls] == [3] * len(data.cameras)


def test_between_key_frames_it_decodes_on(monkeypatch):
    """No frame is decoded twice for a clip, however far its frames lie apart between two key frames."""
    reader, decoded = VideoReader(SOURCE), []
    reader._key_frames = np.array([0])  # as if there were no other
    advance = VideoReader._advance
    monkeypatch.setattr(VideoReader, "_advance", lambda self, number: decoded.append(1) or advance(self, number))
    monkeypatch.setattr(VideoReader, "_jump", lambda self, number: pytest.fail("it jumped"))
    reader._number, reader._frames = -1, reader._container.decode(reader._stream)
    reader._number = 0
    reader._frame = next(reader._frames)
    for number in (3, 40, 90):
        np.testing.assert_array_equal(reader.read(number), decode_rgb(SOURCE)[number])
    assert len(decoded) == 90


def test_all_frames_of_a_camera_are_changed_alike():
    frames = [np.random.default_rng(i).integers(0, 256, (24, 32, 3), dtype=np.uint8) for i in range(2)]
    augment = ExampleAugmentation(AUGMENTATIONS["robot"])
    actions = np.zeros((4, 2))

    def changed(images) -> list:
        example = {"images": images, "cameras": ["front", "side"], "actions": actions}
        return augment(example, np.random.default_rng(3))["images"]

    (first, second), (other,) = changed([frames, frames[:1]])
    alone = changed([frames[0], frames[0]])
    np.testing.assert_array_equal(first, alone[0])  # the draws of a policy without history
    np.testing.assert_array_equal(second, changed([frames[1], frames[0]])[0])
    np.testing.assert_array_equal(other, alone[1])
    assert (first != other).any()  # another camera has another place
    missing = changed([[None, frames[1]], None])
    assert missing[0][0] is None and missing[1] is None
    np.testing.assert_array_equal(missing[0][1], second)


def test_questions_are_about_the_newest_frame(plain):
    data = LeRobotDataset(DATASET, 4).look_back(HISTORY)
    (image,) = FrameQuestions(data, [(20, data.cameras[0], "what?", "that")])[0]["images"]
    np.testing.assert_array_equal(image, plain[20]["images"][0])


def test_data_and_policy_must_look_back_alike(tmp_path):
    _, processor = make_policy(tmp_path)
    data = LeRobotDataset(DATASET, processor.chunk_size).look_back(HISTORY)
    with pytest.raises(ValueError, match="read with 3 frames, 5 control steps apart in an example, and the policy"):
        check_dataset(data, processor)
    check_dataset(data.look_back(processor.observation_history), processor)
