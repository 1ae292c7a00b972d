"""Which picture belongs to which row: right, or refused when the dataset is opened. Never shifted without a word."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kivla.training.data.lerobot.dataset import LeRobotDataset
from tests.fuzz.video_places import random_faults
from tests.helpers.lerobot_folder import CAMERA, number_of, pictures_are_right, write_folder, write_video

LENGTHS = (12, 9, 15)
FROM, TO = f"videos/{CAMERA}/from_timestamp", f"videos/{CAMERA}/to_timestamp"


def opened(root, **options):
    """The dataset, or None where it is refused."""
    try:
        return LeRobotDataset(root, chunk_size=2, **options)
    except ValueError as error:
        assert CAMERA in str(error) or "fps" in str(error)
        return None


# Times decide


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
@pytest.mark.parametrize("video_fps", [20, 30, 60])
def test_a_faster_video_gives_the_nearest_frames(video_fps, version, tmp_path):
    many = video_fps // 10
    videos = [[100 * e + i // many for i in range(length * many)] for e, length in enumerate(LENGTHS)]
    data = LeRobotDataset(write_folder(tmp_path / "data", version, videos=videos, video_fps=video_fps), chunk_size=2)
    assert pictures_are_right(data)
    (note,) = data.notes
    assert "3 of 3 episodes have more or fewer frames than rows" in note and "36 of 36 within 1 ms" in note


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_a_row_that_was_dropped(version, tmp_path):
    """The video of episode 1 has all frames; row 4 of the table is gone, as its time shows."""

    def edit(columns, episode):
        if episode == 1:
            columns["timestamp"] = columns["timestamp"] + 0.1 * (np.arange(len(columns["timestamp"])) >= 4)

    videos = [list(range(12)), list(range(100, 110)), list(range(200, 215))]
    root = write_folder(tmp_path / "data", version, videos=videos, edit_columns=edit)
    data = LeRobotDataset(root, chunk_size=2)
    shown = [number_of(data[i]["images"][0]) for i in data.episode_range(1)]
    assert shown == [100, 101, 102, 103, 105, 106, 107, 108, 109]
    assert [number_of(data[i]["images"][0]) for i in data.episode_range(2)] == list(range(200, 215))
    assert any("1 of 3 episodes have more or fewer frames" in note for note in data.notes)


def test_a_frame_that_was_dropped(tmp_path):
    """The video has no frame at 0.4 s: refused, but with a tolerance that allows a neighbour."""
    numbers = [i for i in range(12) if i != 4]
    times = [[i / 10 for i in numbers], *([i / 10 for i in range(n)] for n in LENGTHS[1:])]
    root = write_folder(tmp_path / "data", videos=[numbers, range(100, 109), range(200, 215)], times=times)
    with pytest.raises(ValueError, match=r"episode 0 in .*12 rows, and 11 frames .* gaps for 0 more: nobody can"):
        LeRobotDataset(root)
    assert pictures_are_right(LeRobotDataset(root, episodes=[1, 2], chunk_size=2))
    data = LeRobotDataset(root, chunk_size=2, tolerance_s=0.11)
    shown = [number_of(data[i]["images"][0]) for i in data.episode_range(0)]
    assert shown == [0, 1, 2, 3, 3, 5, 6, 7, 8, 9, 10, 11] and "the furthest 0.1 s off" in data.notes[-1]


def test_a_video_of_changing_rate_is_read_by_row(tmp_path):
    times = [np.cumsum(np.random.default_rng(e).uniform(0.05, 0.35, n)).tolist() for e, n in enumerate(LENGTHS)]
    data = LeRobotDataset(write_folder(tmp_path / "data", times=times), chunk_size=2)
    assert pictures_are_right(data) and not data.notes


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_a_gap_in_the_videos_clock_that_the_rows_have_not_is_said(version, tmp_path):
    """A frame was lost, and one at the end makes up the number: what follows the gap may be a frame early."""
    times = [[k / 10 + 0.1 * (k > 4) for k in range(12)], *(np.arange(n) / 10 for n in LENGTHS[1:])]
    root = write_folder(tmp_path / "data", version, times=times if version == "v2.1" else None)
    notes = [note for note in LeRobotDataset(root).notes if "the clock of 1 of 3 videos leaves time out" in note]
    assert len(notes) == (version == "v2.1") and all("frame 5 of episode 0" in note for note in notes)


def test_times_that_cannot_place_rows_are_refused(tmp_path):
    for name, change, message in (
        ("late", lambda t: t + 0.1, "begin at 0.1 s and not at 0"),
        ("still", lambda t: 0 * t, "do not grow"),
        ("none", lambda t: t * np.nan, "do not grow"),
    ):
        root = write_folder(
            tmp_path / name,
            videos=[range(36), range(27), range(45)],
            video_fps=30,
            edit_columns=lambda columns, _, change=change: columns.update(timestamp=change(columns["timestamp"])),
        )
        with pytest.raises(ValueError, match=f"12 rows, and 36 frames .*{message}"):
            LeRobotDataset(root)


def test_rows_that_go_back_in_time_without_numbers_are_refused(tmp_path):
    def edit(columns, episode):
        del columns["frame_index"]
        columns["timestamp"] = columns["timestamp"][::-1]

    with pytest.raises(ValueError, match=r"go back in all 3 episodes .*, and without frame_index"):
        LeRobotDataset(write_folder(tmp_path / "data", edit_columns=edit))


# Episodes in one file


def test_times_of_the_table_that_drift_are_counted_instead(tmp_path):
    """The table was written for 10 fps, and the video has 9.7."""

    def edit(episodes):
        for episode, start in zip(episodes, np.cumsum([0, *LENGTHS]), strict=False):
            episode[FROM], episode[TO] = start / 10, (start + episode["length"]) / 10

    data = LeRobotDataset(write_folder(tmp_path / "data", "v3.0", video_fps=9.7, edit_episodes=edit), chunk_size=2)
    assert pictures_are_right(data)
    assert any("the frames are counted" in note for note in data.notes)


def test_an_episode_that_was_taken_out_of_the_table_leaves_a_hole(tmp_path):
    def edit(episodes):
        del episodes[1]

    data = LeRobotDataset(write_folder(tmp_path / "data", "v3.0", edit_episodes=edit), chunk_size=2)
    assert data.episodes == [0, 2] and pictures_are_right(data)


@pytest.mark.parametrize("video_fps", [10, 9.7])
def test_a_slower_video_is_not_entered_by_the_clock_of_the_rows(video_fps, tmp_path):
    """Episodes 1 and 3 of 5 are taken out, so frames cannot be counted; 3 % are more than half a frame after 2 s."""

    def edit(episodes):
        for number, episode in enumerate(episodes):
            episode[FROM], episode[TO] = number % 4, number % 4 + 1.0
            episode[f"videos/{CAMERA}/file_index"] = number // 4
        episodes[:] = episodes[::2]

    root = write_folder(tmp_path / "data", "v3.0", [10] * 5, edit_episodes=edit)
    numbers = [100 * episode + k for episode in range(5) for k in range(10)]
    for file, held in enumerate((numbers[:40], numbers[40:])):
        write_video(root / f"videos/{CAMERA}/chunk-000/file-{file:03d}.mp4", held, video_fps)
    if video_fps == 10:
        assert pictures_are_right(LeRobotDataset(root, 2))
    else:
        with pytest.raises(ValueError, match=r"episode 2 in .*those of 10 fps, the video runs at 9\.7, and"):
            LeRobotDataset(root)


@pytest.mark.parametrize("video_fps", [10, 30])
@pytest.mark.parametrize("frames", [1, 3])
def test_a_file_with_frames_too_many_is_refused(frames, video_fps, tmp_path):
    """They may be at its end or at its beginning, where they would shift every picture; the table is the same."""

    def edit(episodes):  # what the table says where the file has no frame too many
        for episode, start in zip(episodes, np.cumsum([0, *LENGTHS]), strict=False):
            episode[FROM], episode[TO] = start / 10, (start + episode["length"]) / 10

    for name, videos in (
        ("before", [[*[7] * frames, *range(12)], range(100, 109), range(200, 215)]),
        ("after", [range(12), range(100, 109), [*range(200, 215), *[7] * frames]]),
    ):
        videos = [np.repeat(list(video), video_fps // 10).tolist() for video in videos]
        root = write_folder(tmp_path / name, "v3.0", videos=videos, video_fps=video_fps, edit_episodes=edit)
        with pytest.raises(ValueError, match=r"the video goes on for 0\.\d+ s after it, the last one in the file"):
            LeRobotDataset(root)
    data = LeRobotDataset(root, chunk_size=2, tolerance_s=0.1 * frames + 0.01)
    assert pictures_are_right(data)
    (note,) = (note for note in data.notes if "tolerance_s allows" in note)
    assert "1 of 1 videos end up to 0." in note and "only their ends are wrong" in note


def test_an_episode_taken_out_of_the_table_hides_no_shift(tmp_path):
    """The one after it is said to begin a frame too early: it would show the last picture of the one taken out."""

    def edit(episodes):
        for key in (FROM, TO):
            episodes[2][key] -= 0.1
        del episodes[1]

    with pytest.raises(ValueError, match=r"the video goes on for 0\.1 s after it"):
        LeRobotDataset(write_folder(tmp_path / "data", "v3.0", edit_episodes=edit))


@pytest.mark.parametrize("extra", [1, 3])
def test_a_video_that_goes_on_is_refused(extra, tmp_path):
    """Nobody can tell whether the frames too many are at its end."""
    videos = [range(12), [*range(100, 109), *[7] * extra], range(200, 215)]
    root = write_folder(tmp_path / "data", videos=videos)
    with pytest.raises(ValueError, match=rf"episode 1 in .*9 rows, and {9 + extra} frames .* gaps for 0 more: nobody"):
        LeRobotDataset(root)
    data = LeRobotDataset(root, chunk_size=2, tolerance_s=0.1 * extra + 0.01)
    assert pictures_are_right(data)
    (note,) = (note for note in data.notes if "tolerance_s allows" in note)
    assert "1 of 3 videos end up to 0." in note and "only their ends are wrong" in note


# Whatever is wrong about the places is found: each fault with every size

FRAMES = (1, 4)


def moved(which, columns, frames):
    def edit(episodes):
        for episode in which:
            for column in columns:
                episodes[episode][column] += frames / 10

    return edit


def swapped(first, second, columns):
    def edit(episodes):
        for column in columns:
            one, two = episodes[first], episodes[second]
            one[column], two[column] = two[column], one[column]

    return edit


PLACES = {
    f"{columns} of {which} by {sign * frames}": moved(which, {"from": [FROM], "to": [TO], "both": [FROM, TO]}[columns],
                                                      sign * frames)
    for columns in ("from", "to", "both")
    for which in ([0], [1], [2], [1, 2], [0, 1, 2])
    for frames in FRAMES
    for sign in (1, -1)
}  # fmt: skip
PLACES |= {
    f"{columns} of {one} and {two} swapped": swapped(one, two, columns)
    for one, two in ((0, 1), (1, 2), (0, 2))
    for columns in ([FROM], [TO], [FROM, TO])
}
PLACES |= {
    f"{two} has the place of {one}": lambda episodes, one=one, two=two: episodes[two].update(
        {column: episodes[one][column] for column in (FROM, TO)}
    )
    for one in range(3)
    for two in range(3)
    if one != two
}
SELECTIONS = ([0], [1], [2], [0, 2])


@pytest.mark.parametrize("lengths", [(12, 9, 15), (12, 12, 12)], ids=str)
def test_wrong_places_in_a_video_are_right_or_refused(lengths, tmp_path):
    videos = [[100 * e + k for k in range(n)] for e, n in enumerate(lengths)]
    root, right, refused = tmp_path / "data", [], []

    def end(episodes):
        episodes[2][TO] = sum(lengths) / 10

    write_folder(root, "v3.0", lengths, videos=videos, edit_episodes=end)
    assert pictures_are_right(LeRobotDataset(root, chunk_size=2))
    table = root / "meta/episodes/chunk-000/file-000.parquet"
    whole = pq.read_table(table)
    for name, edit in PLACES.items():
        episodes = whole.to_pylist()
        edit(episodes)
        if min(episode[column] for episode in episodes for column in (FROM, TO)) < 0:
            continue
        pq.write_table(pa.Table.from_pylist(episodes, schema=whole.schema), table)
        for selection in (None, SELECTIONS[len(right) % len(SELECTIONS)]):
            data = opened(root, episodes=selection)
            (refused if data is None else right).append(name)
            assert data is None or pictures_are_right(data), (name, selection)
    assert len(refused) > 3 * len(right), "most faults show"


@pytest.mark.parametrize("seed", range(24))
def test_random_faults_are_right_or_refused(seed, tmp_path):
    options = random_faults(np.random.default_rng(seed))
    data = opened(write_folder(tmp_path / "data", **options))
    assert data is None or pictures_are_right(data)


def test_a_wrong_fps_in_info_is_right_or_refused(tmp_path):
    for version in ("v2.1", "v3.0"):
        for fps in (5, 8, 9.9, 12, 14, 20, 30):
            root = write_folder(
                tmp_path / f"{version}_{fps}", version, edit_info=lambda info, fps=fps: info.update(fps=fps)
            )
            data = opened(root)
            assert (data is None) == (fps != 9.9)
            assert data is None or pictures_are_right(data)
