"""Videos and contact sheets, read back."""

from dataclasses import replace

import av
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from kivla.simulation.report_media import choose_episodes, plot_phases, title, write_contact_sheet, write_video
from kivla.simulation.rollout import Episode
from kivla.simulation.rollout_evaluation import count_phases

LONG = "go to the circle that is yellow, then go to the square that is purple"

COLORS = np.array([(220, 40, 40), (40, 180, 60), (30, 60, 220), (240, 220, 50)], dtype=np.uint8)


def episode(seed: int = 0, success: bool = True, recorded: bool = True, size: tuple[int, int] = (15, 25)) -> Episode:
    """Frames of one colour each."""
    frames = np.broadcast_to(COLORS[:, None, None], (4, *size, 3)).copy() if recorded else None
    return Episode(seed, "touch the red star", success, None, steps=3, frames=frames)


@pytest.mark.parametrize("size", [(15, 25), (48, 48), (241, 301)], ids=str)
def test_mp4_shows_every_frame_under_its_title(tmp_path, size):
    write_video(tmp_path / "a.mp4", episode(size=size), fps=12)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 12 and stream.codec_context.name == "h264"
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(frames) == 4 and frames[0].shape[1] >= 240
    for frame, color in zip(frames, COLORS, strict=True):
        np.testing.assert_allclose(frame[60:-20].mean(axis=(0, 1)), color, atol=12)
        assert (frame[:36].min(axis=-1) < 130).any() and frame[:36].mean() > 180, "dark words on white"


def test_gif_shows_every_frame(tmp_path):
    write_video(tmp_path / "a.gif", episode(), fps=10)
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == 4 and image.info["duration"] == 100
        for i, color in enumerate(COLORS):
            image.seek(i)
            np.testing.assert_allclose(np.asarray(image.convert("RGB"))[60, 100], color, atol=12)


def test_contact_sheet_has_a_row_for_each_episode(tmp_path):
    write_contact_sheet(tmp_path / "a.png", [episode(1, False), episode(2), episode(3)], columns=4)
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    for color in COLORS:  # each of them once in every row
        rows = (np.abs(pixels - color).max(axis=-1) < 10).sum(axis=1) > 50
        assert (np.diff(rows.astype(int)) == 1).sum() == 3


def test_a_long_title_moves_no_picture(tmp_path):
    short, long = episode(1), replace(episode(2), instruction=f"{LONG}, then {LONG}, then {LONG}")
    write_contact_sheet(tmp_path / "a.png", [short, long], columns=4)
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    starts = []
    for color in COLORS:
        columns = np.flatnonzero((np.abs(pixels - color).max(axis=-1) < 10).sum(axis=0) > 50)
        starts.append(columns[0])
    assert np.ptp(np.diff(starts)) <= 2, "the columns are as far from one another as they are"


def test_a_long_title_is_over_its_video_as_a_whole(tmp_path):
    short, long = episode(), replace(episode(), instruction=LONG)
    for file, shown in (("short.gif", short), ("long.gif", long)):
        write_video(tmp_path / file, shown, fps=10)
    with Image.open(tmp_path / "short.gif") as image, Image.open(tmp_path / "long.gif") as longer:
        assert longer.width == image.width and longer.height > image.height, "it takes another line"
        edge = np.asarray(longer.convert("L"))[:50, -4:]
    assert edge.min() > 200, "no word reaches over the edge"


def test_the_legend_lies_on_no_bar(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: drawn.append(figure))
    phases = count_phases([replace(episode(), phases={"reached": True, "held": True, "did as told": True})])
    plot_phases(tmp_path / "phases.png", {"true instruction": phases, "swapped instruction": phases})
    (figure,) = drawn
    figure.draw_without_rendering()
    (legend,), (axis,) = figure.legends, figure.axes
    assert not legend.get_window_extent().overlaps(axis.get_window_extent())


def test_titles_say_instruction_and_outcome():
    assert title(episode(7)) == "touch the red star: success (3 steps, seed 7)"
    early, late = episode(7, success=False), replace(episode(7, success=False), timed_out=True)
    assert title(early) == "touch the red star: failure, decided early (3 steps, seed 7)"
    assert title(late) == "touch the red star: failure, time was up (3 steps, seed 7)"


def test_failures_of_every_kind_are_shown_before_more_of_one():
    def stopped(seed: int, held: bool, timed_out: bool) -> Episode:
        phases = {"reached it": True, "held it": held, "did as told": False}
        return replace(episode(seed, success=False), phases=phases, timed_out=timed_out)

    failures = [stopped(0, False, True), stopped(1, False, True), stopped(2, True, True), stopped(3, False, False)]
    assert [e.seed for e in choose_episodes(failures, 3)] == [0, 2, 3]
    assert [e.seed for e in choose_episodes(failures, 4)] == [0, 2, 3, 1]


def test_failures_and_successes_are_shown():
    successes = [episode(i) for i in range(10)]
    failures = [episode(i, success=False) for i in range(10, 20)]

    def chosen(episodes, count):
        return [e.seed for e in choose_episodes(episodes, count)]

    assert chosen(successes + failures, 4) == [10, 11, 0, 1]
    assert chosen(successes + failures[:1], 4) == [10, 0, 1, 2]
    assert chosen(successes[:1] + failures, 4) == [10, 11, 12, 0]
    assert chosen(successes, 4) == [0, 1, 2, 3] and chosen(failures, 4) == [10, 11, 12, 13]
    assert chosen(successes[:1] + failures[:1], 8) == [10, 0] and chosen([], 4) == [] and chosen(successes, 0) == []


def test_nothing_is_written_of_what_cannot_be_shown(tmp_path):
    with pytest.raises(ValueError, match=r"\.mp4 or \.gif, not as 'a\.avi'"):
        write_video(tmp_path / "a.avi", episode(), fps=10)
    with pytest.raises(ValueError, match="seed 3 was not recorded"):
        write_video(tmp_path / "a.mp4", episode(3, recorded=False), fps=10)
    with pytest.raises(ValueError, match="at least one episode"):
        write_contact_sheet(tmp_path / "a.png", [])
    assert not list(tmp_path.iterdir())
