"""Numbers of episodes as people write them: single ones, ranges, and files of them."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

_RANGE = re.compile(r"(\d+)-(\d+)")
_MOST = 10_000_000  # of episodes in a range: beyond it is a slip of the hand


def parse_episodes(words: str | Iterable[str | int] | None, option: str = "episodes") -> list[int] | None:
    """Read numbers (`7`), ranges with both ends (`0-49`), and files (`@held_out.txt`), in their order.

    Commas are as good as spaces (`3,7`). A file has numbers and ranges with spaces, commas or new lines between them; a
    JSON list is one, too. What follows a `#` is a comment.

    Args:
        words: a text, or several; numbers are taken as they are. None stays None.
        option: what messages call it.

    Raises:
        ValueError: something else, or there is no such file, or nothing in it.
    """
    if words is None:
        return None
    numbers: list[int] = []
    for word in words.split() if isinstance(words, str) else words:
        if isinstance(word, str) and word.startswith("@"):
            file = Path(word[1:]).expanduser()
            if not file.is_file():
                raise ValueError(f"--{option} {word}: there is no file {file}.")
            lines = file.read_text(encoding="utf-8").splitlines()
            parts = [part.strip("[]") for part in _split(" ".join(line.partition("#")[0] for line in lines))]
            if not any(parts):
                raise ValueError(f"--{option} {word}: the file {file} names no episode.")
            for part in filter(None, parts):
                numbers += _numbers(part, option)
        elif isinstance(word, str):
            for part in _split(word) or [word]:
                numbers += _numbers(part, option)
        else:
            numbers.append(word)
    return numbers


def without(episodes: Sequence[int], left_out: Sequence[int], option: str = "exclude_episodes") -> list[int]:
    """Leave episodes out.

    Raises:
        ValueError: one is not among them, or none is left.
    """
    if unknown := sorted(set(left_out) - set(episodes)):
        raise ValueError(f"--{option} names episodes that are not among those to use: {unknown}.")
    rest = [episode for episode in episodes if episode not in set(left_out)]
    if not rest:
        raise ValueError(f"--{option} leaves no episode.")
    return rest


def _split(words: str) -> list[str]:
    return words.replace(",", " ").split()


def _numbers(word: str, option: str) -> list[int]:
    if word.isdecimal():
        return [int(word)]
    match = _RANGE.fullmatch(word)
    first, last = (int(match[1]), int(match[2])) if match else (0, -1)
    if not 0 <= last - first < _MOST:
        raise ValueError(
            f"--{option} takes numbers, ranges such as 0-49, and files of them such as @held_out.txt; got {word!r}."
        )
    return list(range(first, last + 1))


__all__ = ["parse_episodes", "without"]
