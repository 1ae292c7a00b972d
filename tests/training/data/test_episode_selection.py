"""Episodes as people write them on the command line."""

import pytest

from kivla.training.data.episode_selection import parse_episodes, without


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (None, None),
        ([3, 1], [3, 1]),
        (range(3), [0, 1, 2]),
        (["7", "0-3", "12"], [7, 0, 1, 2, 3, 12]),
        ("0-2 9", [0, 1, 2, 9]),
        (["0,1", "4-5,7"], [0, 1, 4, 5, 7]),
        ("0, 1", [0, 1]),
        (["5-5"], [5]),
    ],
)
def test_numbers_and_ranges(words, expected):
    assert parse_episodes(words) == expected


@pytest.mark.parametrize("content", ["3, 4\n10-12", "[3, 4, 10-12]", "3 # good\n4\n\n10-12 # the last ones\n"])
def test_a_file_of_them(content, tmp_path):
    (tmp_path / "held_out.txt").write_text(content)
    assert parse_episodes(["1", f"@{tmp_path}/held_out.txt"]) == [1, 3, 4, 10, 11, 12]


@pytest.mark.parametrize("word", ["first", "3-", "9-2", "-1", "1.5", "0-99999999999", "0:5", "", ","])
def test_what_is_no_number_is_refused_by_name(word):
    with pytest.raises(ValueError, match=f"--eval_episodes takes numbers, ranges .* got '{word}'"):
        parse_episodes([word], "eval_episodes")


def test_a_file_that_is_not_there():
    with pytest.raises(ValueError, match=r"--episodes @none\.txt: there is no file none\.txt"):
        parse_episodes(["@none.txt"])


@pytest.mark.parametrize("content", ["", "\n", "# none yet\n", "[]"])
def test_a_file_without_any(content, tmp_path):
    (tmp_path / "held_out.txt").write_text(content)
    with pytest.raises(ValueError, match=r"--eval_episodes @.*the file .*held_out\.txt names no episode"):
        parse_episodes([f"@{tmp_path}/held_out.txt"], "eval_episodes")


def test_leaving_out():
    assert without([0, 1, 2, 3], [1, 3]) == [0, 2]
    with pytest.raises(ValueError, match=r"not among those to use: \[7\]"):
        without([0, 1], [7])
    with pytest.raises(ValueError, match="leaves no episode"):
        without([0, 1], [0, 1])
