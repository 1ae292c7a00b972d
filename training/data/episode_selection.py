"""Numbers of episodes as people write them: single ones, ranges, and files of them."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

_RANGE = re.compile(r"(\d+)-(\d+)")
_MOST = 10_000_000  # of episodes in a range: beyond it is a slip of the hand


def parse_episodes(words: str | Iterable[str | int] | None, option: str = "episodes") -> list[int] | None:
    """Read numbers (`7`), ranges with both ends (`0-49`), and files (`@held_out.txt`), in their order.

    A file has numbers and ranges with spaces, commas or new lines between them; a JSON list is one, too. What follows a
    `#` is a comment.

    Args:
        words: a text, or several; numbers are taken as they are. None stays None.
        option: what messages call it.

    Raises:
        ValueError: something else, or there is no such file.
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
            for part in " ".join(line.partition("#")[0] for line in lines).replace(",", " ").split():
                numbers += _numbers(part.strip("[]"), option)
        else:
            numbers += _numbers(word, option)
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


def _numbers(word: str | int, option: str) -> list[int]:
    if not isinstance(word, str):
        return [word]
    if not word or word.isdecimal():
        return [int(word)] if word else []
    match = _RANGE.fullmatch(word)
    first, last = (int(match[1]), int(match[2])) if match else (0, -1)
    if not 0 <= last - first < _MOST:
        raise ValueError(
            f"--{option} takes numbers, ranges such as 0-49, and files of them such as @held_out.txt; got {word!r}."
        )
    return list(range(first, last + 1))


__all__ = ["parse_episodes", "without"]
