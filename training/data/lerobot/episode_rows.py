"""Which rows of the data files are whose, and what an episode is told to do."""

from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np

from .frame_table import ROW_NUMBER, episode_runs, numbered_runs
from .messages import some
from .metadata import LeRobotMetadata


def find_episodes(
    name: str,
    metadata: LeRobotMetadata,
    table: datasets.Dataset,
    positions: np.ndarray,
    files: dict[Path, np.ndarray],
    num_rows: Sequence[int],
) -> tuple[np.ndarray, list[str]]:
    """Find the rows of the selected episodes, and compare their lengths with the metadata.

    Args:
        name: the dataset's, for messages.
        table: all rows.
        positions: (E,) of the selected episodes, see `LeRobotMetadata`.
        files: data file → positions of the episodes that it has.
        num_rows: of each file.

    Returns:
        (E,) the first row of each selected episode; and notes.

    Raises:
        ValueError: an episode has not the frames that the metadata says, or nobody can tell which rows are whose.
    """
    all_lengths, notes = metadata.episode_lengths, []
    if "episode_index" in table.column_names:
        indices, first_rows = episode_runs(table)
        lengths = np.diff(first_rows, append=len(table))
    else:
        for (path, held), rows in zip(files.items(), num_rows, strict=True):
            if rows != all_lengths[held].sum():
                raise ValueError(
                    f"{path} has {rows} rows and its episodes {all_lengths[held].sum()}: without episode_index "
                    "nobody can tell which are whose."
                )
        indices, first_rows, lengths, note = _find_without_numbers(name, metadata, table, list(files.values()))
        notes.append(note)
    order = np.argsort(indices)
    indices, first_rows, lengths = indices[order], first_rows[order], lengths[order]
    if (np.diff(indices) == 0).any():
        raise ValueError(f"{name}: the frames of an episode are not in one piece in the data files.")
    selected, expected = metadata.episode_indices[positions], all_lengths[positions]
    places = np.minimum(np.searchsorted(indices, selected), len(indices) - 1)
    found = np.where(indices[places] == selected, lengths[places], 0)
    if (wrong := np.flatnonzero(found != expected)).size:
        first = wrong[0]
        raise ValueError(
            f"{name}: episode {selected[first]} has {expected[first]} frames by its metadata, but "
            f"{found[first]} in the data."
        )
    unknown = ~np.isin(indices, metadata.episode_indices)
    if unknown.any():
        notes.append(
            f"The data files hold {int(lengths[unknown].sum())} rows of episodes that the episode table does not "
            f"list ({some(indices[unknown])}): they are not used."
        )
    return first_rows[places], notes


def _find_without_numbers(
    name: str, metadata: LeRobotMetadata, table: datasets.Dataset, files: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    """Number, first row and length of each episode, where rows do not say of which episode they are; and a note.

    Args:
        files: positions of the episodes that each data file has, as many rows as theirs.
    """
    lengths = metadata.episode_lengths
    shared = [held for held in files if len(held) > 1]
    if shared and ROW_NUMBER in table.column_names:
        starts = metadata.first_indices()
        order = np.argsort(starts, kind="stable")
        runs, first_rows, firsts = numbered_runs(table, starts[order])
        positions = order[runs]
        if (runs < 0).any() or (firsts != starts[positions]).any():
            raise ValueError(
                f"{name}: episode_index is missing, and the numbers in the column {ROW_NUMBER!r} are not "
                "those of the episode table: nobody can tell which rows are whose. Export the dataset again."
            )
        note = f"episode_index is missing: the column {ROW_NUMBER!r} says which rows are whose."
        return metadata.episode_indices[positions], first_rows, np.diff(first_rows, append=len(table)), note
    # Numbers of frames begin anew with each episode, and are checked: they tell episodes of different lengths apart
    is_told = "frame_index" in table.column_names
    if any(not is_told or len(np.unique(lengths[held])) < len(held) for held in shared):
        raise ValueError(
            f"{name}: episode_index and {ROW_NUMBER} are missing, and a data file holds several episodes, "
            f"{'of equal lengths' if is_told else 'without frame_index'}: nobody can tell in which order. Export "
            "the dataset again with these columns."
        )
    held = np.concatenate(files)
    note = "episode_index is missing: the rows of a data file are its episodes, in their order."
    return metadata.episode_indices[held], np.cumsum(lengths[held]) - lengths[held], lengths[held], note


def derive_tasks(
    name: str, metadata: LeRobotMetadata, positions: np.ndarray, has_numbers: bool
) -> tuple[dict[int, str], np.ndarray | None, list[str]]:
    """Task number → instruction; the task of each selected episode, where rows do not have one themselves; and notes.

    Args:
        has_numbers: rows have a `task_index`.

    Raises:
        ValueError: nobody can tell what an episode is told to do.
    """
    tasks = metadata.tasks
    if tasks and has_numbers:
        return tasks, None, []
    what = "task_index is missing" if tasks else "There is no table of tasks"
    if len(tasks) == 1:
        return tasks, np.full(len(positions), next(iter(tasks))), [f"{what}: there is only one task."]
    try:
        listed = metadata.episode_tasks(positions)
    except ValueError as error:
        raise ValueError(f"{name}: {what}, and the episode table lists no tasks. ({error})") from error
    for episode, its_tasks in zip(metadata.episode_indices[positions].tolist(), listed, strict=True):
        if len(its_tasks) != 1 or not isinstance(its_tasks[0], str):
            raise ValueError(f"{name}: {what}, and episode {episode} has not one task, but {its_tasks}.")
    numbers = {text: number for number, text in tasks.items()}
    for (text,) in listed:
        numbers.setdefault(text, max(numbers.values(), default=-1) + 1)
    notes = [f"{what}: tasks are those that the episode table lists for each episode."]
    tasks = {number: text for text, number in numbers.items()} | tasks
    return tasks, np.array([numbers[text] for (text,) in listed]), notes


def compare_tasks(
    metadata: LeRobotMetadata, positions: np.ndarray, tasks: dict[int, str], first_tasks: np.ndarray
) -> list[str]:
    """Say where the episode table lists other tasks than the rows have, a sentence at most.

    Args:
        positions: (E,) of the selected episodes, see `LeRobotMetadata`.
        tasks: task number → instruction.
        first_tasks: (E,) the task of each episode's first row.
    """
    selected = np.full(len(metadata.episode_indices), -1)
    selected[positions] = np.arange(len(positions))
    count, example = 0, ""
    for position, listed in enumerate(metadata.listed_tasks()):
        if selected[position] < 0 or not listed:
            continue
        told = tasks[int(first_tasks[selected[position]])]
        if told not in listed:
            example = example or f"episode {metadata.episode_indices[position]}: {some(listed)!r}, its rows {told!r}"
            count += 1
    if not count:
        return []
    return [f"The episode table lists other tasks than the rows have, in {count} episodes ({example}): rows count."]


__all__ = ["compare_tasks", "derive_tasks", "find_episodes"]
