"""Looks at a whole dataset: what it is, what was assumed, and what to mend before anything is trained on it."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import combinations, pairwise

import numpy as np
from tqdm.auto import tqdm

from ..lerobot.dataset import LeRobotDataset
from ..robot_dataset import RobotDataset, evenly_spread, present_alone
from .dimensions import Dimensions, check_dimensions, measure, names_of
from .episodes import (
    check_copies,
    check_endings,
    check_gaps,
    check_lengths,
    check_rate,
    check_texts,
    end_speed,
    find_copies,
    fingerprint,
    time_gaps,
    time_taken,
)
from .findings import ERROR, LEVELS, WARNING, Finding, counted, limit, some
from .motion import (
    Lag,
    Places,
    check_exchanged,
    check_lag,
    describe_jumps,
    describe_standstills,
    exchanged,
    jumps,
    measure_lag,
    pairs,
    repeated_rows,
    standstills,
)
from .pictures import CameraView, Moment, block_means, busiest, changed, check_camera, look, measure_still
from .spikes import Spikes, describe_rare_jumps
from .spoilt import Sizes, check_spoilt
from .unfinite import FiniteFrames, fill
from .zeros import check_zeros, zero_frames

# How much is looked at: episodes by their vectors (None: all), episodes for what is compared among steps, episodes by
# their pictures, spread and in a row, video files by their packets.
_ALL = {"episodes": None, "sample": 200, "pictures": 6, "spread": 9, "in_a_row": 6, "videos": 100}
_QUICK = {"episodes": 100, "sample": 50, "pictures": 2, "spread": 5, "in_a_row": 1, "videos": 2}

FramesOf = Callable[[int], dict[str, np.ndarray]]  # `RobotDataset.episode_frames`


@dataclass
class DataReport:
    """What `check_data` found.

    Attributes:
        name: of the dataset.
        facts: what it is, for people: title → text.
        actions, state: of the dimensions; None without a state.
        lag: of the state behind the actions; None without a state.
        cameras: what was seen of each.
        findings: worst first.
    """

    name: str
    facts: dict[str, str] = field(default_factory=dict)
    actions: Dimensions | None = None
    state: Dimensions | None = None
    lag: Lag | None = None
    cameras: list[CameraView] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def tables(self) -> list[Dimensions]:
        """Those of actions and state that there are."""
        return [table for table in (self.actions, self.state) if table is not None]

    def count(self, level: str) -> int:
        """How many findings of a level there are."""
        return sum(finding.level == level for finding in self.findings)

    def has_failed(self, strict: bool = False) -> bool:
        """Whether there is an error, or with `strict` a warning."""
        return self.count(ERROR) > 0 or (strict and self.count(WARNING) > 0)

    def to_json(self) -> dict:
        """All of it, in numbers, strings, lists and dicts."""
        return {
            "name": self.name,
            "facts": self.facts,
            "findings": [{"level": finding.level, **asdict(finding)} for finding in self.findings],
            "dimensions": {
                table.name: {
                    name: values.tolist() if isinstance(values, np.ndarray) else list(values)
                    for name, values in vars(table).items()
                    if name != "name"
                }
                for table in self.tables
            },
            "lag": None if self.lag is None else asdict(self.lag),
            "cameras": {
                view.name: {
                    "shape": list(view.shape),
                    "brightness": view.brightness,
                    "blur": view.blur,
                    "moments": {str(episode): asdict(moment) for episode, moment in view.moments.items()},
                    "stills": {str(episode): asdict(still) for episode, still in view.stills.items()},
                }
                for view in self.cameras
            },
        }


def check_data(data: RobotDataset, quick: bool = False, progress: bool = True) -> DataReport:
    """Look at a dataset of any format.

    All states and actions are read, an episode at a time, and a few pictures of a few episodes.

    Args:
        data: the dataset, opened: what a reader refuses is not seen here.
        quick: look at 100 episodes spread evenly and at two pictures of each camera only.
        progress: show a bar.
    """
    with present_alone(data):
        return _report(data, quick, progress)


def _report(data: RobotDataset, quick: bool, progress: bool) -> DataReport:
    how_much = _QUICK if quick else _ALL
    episodes = _spread(data.episodes, how_much["episodes"])
    report = DataReport(data.name, _facts(data, episodes))
    report.findings += [Finding("assumed", note) for note in data.notes]
    total = len(episodes) * (8 if data.state_dim else 5)  # three readings of each vector, and two of both
    with tqdm(total=total, desc="Checking data", unit=" readings", disable=not progress, leave=False) as bar:
        frames_of = finite = FiniteFrames(data)
        if quick:  # few enough to be read once
            frames_of = {episode: finite(episode) for episode in episodes}.__getitem__
        report.findings += (spoilt := _check_spoilt(data, frames_of, episodes, bar))
        sound = [episode for episode in episodes if not any(episode in finding.episodes for finding in spoilt)]
        sound = sound or episodes
        read = partial(_read, frames_of, sound, bar)
        report.actions = measure("actions", data.action_names, data.action_dim, partial(read, "actions"))
        if data.state_dim:
            report.state = measure("state", data.state_names, data.state_dim, partial(read, "state"))
        for table in report.tables:
            report.findings += finite.check(table)
        report.findings += _check_vectors(data, report, frames_of, episodes, sound, how_much["sample"], bar)
        looked_at = _spread(episodes, how_much["pictures"])
        report.findings += _check_pictures(data, report, frames_of, looked_at, how_much["spread"], how_much["in_a_row"])
        if isinstance(data, LeRobotDataset):
            report.findings += _check_videos(data, report, how_much["videos"]) + _check_language(data)
            report.findings += [
                Finding("unnamed_camera", f"{camera} is not used: info.json does not name it.", camera=camera)
                for camera in data.unnamed_cameras
            ]
    report.findings.sort(key=lambda finding: -LEVELS.index(finding.level))
    return report


def _spread(episodes: list[int], count: int | None) -> list[int]:
    return episodes if count is None else [episodes[i] for i in evenly_spread(len(episodes), count)]


def _check_spoilt(data: RobotDataset, frames_of: FramesOf, episodes: list[int], bar: tqdm) -> list[Finding]:
    names = {"actions": (data.action_names, data.action_dim)}
    if data.state_dim:
        names["state"] = (data.state_names, data.state_dim)
    sizes = {name: Sizes(name, names_of(name, *of_vector)) for name, of_vector in names.items()}
    for episode in episodes:
        frames = frames_of(episode)
        bar.update()
        for name, size in sizes.items():
            size.add(frames[name])
    both = [size.names for size in sizes.values()]
    return check_spoilt(sizes, episodes, pairs(*both) if data.state_dim else pairs((), ()))


def _read(frames_of: FramesOf, episodes: list[int], bar: tqdm, name: str) -> Iterator[np.ndarray]:
    for episode in episodes:
        yield frames_of(episode)[name]
        bar.update()


def _facts(data: RobotDataset, episodes: list[int]) -> dict[str, str]:
    lengths = [len(data.episode_range(episode)) for episode in episodes]
    seconds = np.array(lengths) / data.fps
    facts = {
        "frames": f"{len(data):,} in {data.num_episodes:,} episodes, {len(data) / data.fps / 60:.1f} minutes at "
        f"{data.fps:g} fps",
        "episodes": f"{seconds.min():.1f} to {seconds.max():.1f} s, median {np.median(seconds):.1f} s",
        "actions": f"{data.action_dim} dimensions",
        "state": f"{data.state_dim} dimensions" if data.state_dim else "none",
        "cameras": ", ".join(data.cameras) or "none",
    }
    if len(episodes) < data.num_episodes:
        facts["looked at"] = f"{len(episodes)} episodes"
    if isinstance(data, LeRobotDataset):
        facts = {"format": f"LeRobot {data.version}, robot {data.robot_type or 'not named'}", **facts}
    return facts


# ------------------------------------------------------------------------------------------------ states and actions
def _check_vectors(
    data: RobotDataset,
    report: DataReport,
    frames_of: FramesOf,
    episodes: list[int],
    sound: list[int],
    sample_size: int,
    bar: tqdm,
) -> list[Finding]:
    actions, state = report.actions, report.state
    assert actions is not None
    findings: list[Finding] = []
    sample = _spread(sound, sample_size)
    are_positions = False
    if state is not None:
        both = ((frames["actions"], frames["state"]) for frames in map(frames_of, sample))
        report.lag = measure_lag(both, actions, state, data.fps)
        are_positions = report.lag.frames is not None and report.lag.meaning == "positions"
        findings += check_dimensions(state) + check_lag(report.lag, data.fps)
    if are_positions:
        paired = _joints(actions, state)

    findings += check_dimensions(actions, are_positions)
    tables = report.tables
    spikes = {}
    for table in tables:
        spikes[table.name] = Spikes(table, _usual_steps(map(frames_of, sample), table), data.fps)
    jumping: Places = defaultdict(list)  # of the state: what is commanded may jump, but not there and back
    still, gaps, texts, prints, speeds, swapped = [], {}, {}, {}, [], defaultdict(list)
    zeros: dict[str, list[tuple[int, int]]] = defaultdict(list)
    repeated, moving, frames_in_all, seconds, timed_steps = 0, 0, 0, 0.0, 0
    for episode in episodes:
        frames = frames_of(episode)
        bar.update()
        frames_in_all += len(frames["actions"])
        texts[episode] = data.episode_texts(episode)
        prints[episode] = fingerprint(*_together(frames, tables))
        missing = time_gaps(frames["timestamp"], data.fps)
        taken, steps = time_taken(frames["timestamp"])
        seconds, timed_steps = seconds + taken, timed_steps + steps
        if len(missing):
            gaps[episode] = (len(missing), float(np.diff(frames["timestamp"])[missing - 1].max()))
        if episode not in sound:
            continue
        for table in tables:
            if table is state or are_positions:
                is_zero = zero_frames(frames[table.name], _width(table), spikes[table.name].usual_step)
                zeros[table.name] += [(episode, int(frame)) for frame in np.flatnonzero(is_zero)]
                bad = np.broadcast_to(is_zero[:, None], frames[table.name].shape)
                frames = {**frames, table.name: fill(frames[table.name], bad)}
            spikes[table.name].add(episode, frames[table.name])
        if state is None:
            continue
        runs = standstills(frames["state"], frames["actions"], actions.range, data.fps)
        still += [(episode, *run) for run in runs]
        for frame, dimension in zip(*jumps(frames["state"], _room(state), spikes["state"].usual_step), strict=True):
            if frame not in {end for _, end in runs}:  # there it catches up
                jumping[int(dimension)].append((episode, int(frame)))
        if are_positions:
            width = actions.range[paired[:, 0]]
            for i, j in exchanged(frames["actions"], frames["state"], paired, report.lag.frames, width):
                swapped[state.names[paired[i, 1]], state.names[paired[j, 1]]].append(episode)
        speeds.append(end_speed(frames["state"], _width(state), data.fps))
        some_repeated, some_moving = repeated_rows(frames["state"])
        repeated, moving = repeated + some_repeated, moving + some_moving
    for table in tables:
        is_state = table is state
        faults, others = spikes[table.name].judge(is_state or are_positions, _partner(table, report, are_positions))
        # A dimension that hardly ever moves but for a fault is no rare one
        wrong = table.where(np.isin(np.arange(len(table.names)), list(faults)))
        findings = [f for f in findings if (f.code, f.vector) != ("rare", table.name) or f.dimensions[0] not in wrong]
        findings += describe_jumps(faults | jumping if is_state else faults, table, len(episodes))
        findings += describe_rare_jumps(others, table)
        findings += check_zeros(zeros[table.name], table)
    findings += describe_standstills(still, data.fps) + check_exchanged(swapped)
    if moving and repeated / moving >= limit("repeated_rows"):
        text = (
            f"{100 * repeated / moving:.0f} % of the frames in motion repeat the state of the frame before: the robot "
            "reports slower than the recording."
        )
        findings.append(Finding("repeated_rows", text, "state"))
    lengths = [len(data.episode_range(episode)) for episode in episodes]

    def are_same(one: int, other: int) -> bool:
        (a, width), (b, _) = (_together(frames_of(episode), tables) for episode in (one, other))
        return bool((np.abs(a - b) <= np.where(width, limit("same_episode") * width, np.inf)).all())

    findings += check_lengths(episodes, lengths, data.fps) + check_copies(find_copies(prints, are_same))
    findings += check_endings(sound, speeds) if speeds else []
    findings += check_gaps(gaps, frames_in_all) + check_rate(seconds, timed_steps, data.fps)
    said = list(dict.fromkeys(text for of_one in texts.values() for text in of_one))
    report.facts["instructions"] = f"{len(said)}: {some([repr(text) for text in said], 3)}"
    whole = len(episodes) == data.num_episodes
    return findings + check_texts(texts, list(data.tasks.values()) if whole else [])


def _width(table: Dimensions) -> np.ndarray:
    """(D,) the whole range; 0 of what is constant."""
    return np.where(table.is_constant, 0, table.range)


def _room(table: Dimensions) -> np.ndarray:
    """(D,) the whole range of what moves; infinite of others, in which there are no jumps, or motion is one."""
    return np.where(table.is_constant | table.is_switch | table.is_rare, np.inf, table.range)


def _partner(table: Dimensions, report: DataReport, are_positions: bool) -> np.ndarray:
    """(D,) the whole range of the action that moves a state, or of the state that follows an action; else infinite."""
    partner = np.full(len(table.names), np.inf)
    if are_positions:
        paired = pairs(report.actions.names, report.state.names)
        own, other = (0, 1) if table is report.actions else (1, 0)
        partner[paired[:, own]] = report.tables[other].range[paired[:, other]]
    return partner


def _together(frames: dict[str, np.ndarray], tables: Sequence[Dimensions]) -> tuple[np.ndarray, np.ndarray]:
    """(T, D) all vectors of an episode, and (D,) the whole range of each dimension."""
    vectors = np.concatenate([frames[table.name] for table in tables], axis=1)
    return vectors, np.concatenate([_width(table) for table in tables])


def _joints(actions: Dimensions, state: Dimensions) -> np.ndarray:
    """(P, 2) actions and states of one joint, which moves. (Where it was exchanged it follows no more.)"""
    paired = pairs(actions.names, state.names)
    return paired[~actions.is_constant[paired[:, 0]] & ~state.is_constant[paired[:, 1]]]


def _usual_steps(episodes: Iterable[dict], table: Dimensions) -> np.ndarray:
    """(D,) what 90 % of the steps of some episodes do not exceed."""
    steps = np.concatenate([np.abs(np.diff(frames[table.name], axis=0)) for frames in episodes])
    return np.quantile(steps, 0.9, axis=0) if len(steps) else np.zeros(len(table.names))


# ---------------------------------------------------------------------------------------------------------- pictures
def _check_pictures(
    data: RobotDataset, report: DataReport, frames_of: FramesOf, episodes: list[int], spread_over: int, in_a_row: int
) -> list[Finding]:
    report.cameras = [CameraView(camera) for camera in data.cameras]
    if not data.cameras:
        return [Finding("no_camera", "There is no camera: a policy learns to act without seeing anything.")]
    table = report.state or report.actions
    assert table is not None
    scale = np.where(table.is_constant | table.is_switch, np.inf, table.range)  # a hand may close where it is unseen
    half = max(round(data.fps / 2), in_a_row)
    different: set[tuple[str, str]] = set()  # cameras
    for episode in episodes:
        items = data.episode_range(episode)
        last = len(items) - 1
        movement = (np.abs(np.diff(frames_of(episode)[table.name], axis=0)) / scale).sum(axis=1)
        middle = min(busiest(movement, half), last)
        spread = evenly_spread(len(items), spread_over).tolist()
        wanted = {middle, *spread}
        first = min(max(middle - in_a_row // 2, 0), max(len(items) - in_a_row, 0))
        run = range(first, min(first + in_a_row, len(items)))
        around = (max(middle - half, 0), min(middle + half, last))
        if in_a_row > 1:
            wanted |= {*run, *around}
        try:
            seen = {frame: data[items[frame]]["images"] for frame in sorted(wanted)}
        except ValueError as error:  # readers say so, with episode and frame
            return [Finding("unreadable", str(error), episodes=(episode,))]
        for i, j in combinations(range(len(data.cameras)), 2):
            if not all(np.array_equal(images[i], images[j]) for images in seen.values()):
                different.add((data.cameras[i], data.cameras[j]))
        position = np.r_[0, movement.cumsum()][spread]
        for i, view in enumerate(report.cameras):
            look(view, [seen[frame][i] for frame in sorted({0, middle, last})])
            view.stills[episode] = measure_still([block_means(seen[frame][i]) for frame in spread], position)
            if in_a_row > 1 and len(run) > 1:
                steps = tuple(changed(seen[a][i], seen[b][i]) for a, b in pairwise(run))
                twos = tuple(changed(seen[a][i], seen[b][i]) for a, b in zip(run[:-2], run[2:], strict=True))
                view.moments[episode] = Moment(steps, twos, changed(seen[around[0]][i], seen[around[1]][i]))
    findings = [finding for view in report.cameras for finding in check_camera(view)]
    return findings + [
        Finding("same_camera", f"{one} and {other} show the same pictures: is one the other's?", camera=one)
        for one, other in combinations(data.cameras, 2)
        if (one, other) not in different
    ]


def _check_videos(data: LeRobotDataset, report: DataReport, count: int) -> list[Finding]:
    """Of cameras that are stored as video: whether any frame can be had, and what a random one costs."""
    findings, codecs = [], []
    for camera, files in data.video_files().items():
        from ..lerobot.key_frames import read_key_frames  # PyAV is an optional dependency

        chosen = [files[i] for i in evenly_spread(len(files), count)]
        videos = [data.read_video(path, read_key_frames) for path in chosen]
        decoded = sum(video.decoded * video.frames for video in videos) / max(sum(video.frames for video in videos), 1)
        codecs.append(f"{camera} {videos[0].codec}, {decoded:.1f} frames decoded for a random one")
        late = [path.name for path, video in zip(chosen, videos, strict=True) if not video.starts_with_one]
        if late:
            text = f"Videos of {camera} begin without a key frame, so that their first frames are lost: {some(late)}."
            findings.append(Finding("late_key_frame", f"{text} Encode them again.", camera=camera))
        if decoded >= limit("key_frames"):
            text = (
                f"Key frames of {camera} are far apart: for a frame at random, as in training, {decoded:.0f} are "
                f"decoded. Encode the videos again with a key frame every second frame, `kivla transcode {data.name} "
                "--output_dir NEW_FOLDER`, or keep frames in memory: --frame_cache_mb."
            )
            findings.append(Finding("key_frames", text, camera=camera))
        if rates := data.other_rates[camera]:
            text = (
                f"{counted(len(rates), 'video')} of {camera} run at {min(rates):.4g} to {max(rates):.4g} frames a "
                f"second, the data at {data.fps:g}; they have a frame for each row, and are read row by row. Correct "
                "the one that is wrong."
            )
            findings.append(Finding("other_rate", text, camera=camera))
    if codecs:
        report.facts["videos"] = "; ".join(codecs)
    return findings


def _check_language(data: LeRobotDataset) -> list[Finding]:
    """Columns with words, or numbers of words, that are not read."""
    names = [
        name
        for name, feature in data.features.items()
        if name not in ("task", data.subtask_key) and (feature.get("dtype") == "string" or "subtask" in name)
    ]
    if not names:
        return []
    text = (
        f"More is said than the instruction, in {some(names)}: --subtask_key NAME makes a column what the policy says."
    )
    return [Finding("language", text)]


__all__ = ["DataReport", "check_data"]
