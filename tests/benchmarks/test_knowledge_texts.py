"""Texts to replay and to measure on: they do not overlap, and a package that is another one is refused."""

import zipfile

import pytest

from benchmarks.knowledge_texts import LONGEST, SHORTEST, apart, paragraphs, python_reference, runs_of_words
from benchmarks.pypi_files import Wheel, unpack


def test_texts_of_pythons_reference():
    texts = python_reference()
    assert len(texts) > 50 and len(set(texts)) == len(texts)
    assert all(SHORTEST <= len(text) <= LONGEST for text in texts)
    assert not any("::=" in text for text in texts), "grammar is no running text"


def test_paragraphs_are_those_in_running_words():
    page = 'A heading\n*********\n\n   pass_stmt ::= "pass"\n\n"pass" is a null\noperation.\n\n* An item.'
    assert list(paragraphs(page)) == ['"pass" is a null operation.']


def test_no_eight_words_in_a_row_are_shared():
    replayed = "One two three four five six seven eight nine."
    taken = set(runs_of_words(replayed))
    shares, differs = "It says: two, three four five six seven eight NINE ten.", "one two three four five six seven"
    assert apart([shares, differs], taken) == [differs]


def test_another_package_is_refused(tmp_path):
    wheel = Wheel("some-package", "1.0", "0" * 64)
    with zipfile.ZipFile(tmp_path / wheel.file_name, "w") as archive:
        archive.writestr("data.txt", "words")
    with pytest.raises(SystemExit, match="SHA-256"):
        unpack(wheel, "data.txt", tmp_path)
