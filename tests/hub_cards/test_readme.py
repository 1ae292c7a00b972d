"""README.md: the card is written anew, and what its author wrote stays."""

import pytest
from huggingface_hub import ModelCard, metadata_load

from kivla.hub_cards.readme import BEGIN, END, author_words, join_readmes, split_metadata, with_card, write_readme

CARD = "---\nlibrary_name: kivla\ntags:\n- kivla\n- insulated\n---\n\n# A policy\n\nIt acts.\n"


def card(text: str = CARD) -> ModelCard:
    return ModelCard(text)


def test_a_card_where_there_was_none(tmp_path):
    assert not write_readme(tmp_path / "README.md", card())
    assert metadata_load(tmp_path / "README.md") == {"library_name": "kivla", "tags": ["kivla", "insulated"]}
    text = (tmp_path / "README.md").read_text()
    assert not write_readme(tmp_path / "README.md", card()) and (tmp_path / "README.md").read_text() == text


AUTHORS = "---\nlicense: mit\ntags: [mine]\n---\n\n# My robot\n\nCall me.\n\n---\n\nA rule above.\n"


@pytest.mark.parametrize(
    "before", [AUTHORS, AUTHORS.partition("---\n\n")[2], "Words alone", AUTHORS.replace("\n", "\r\n")]
)
def test_an_authors_readme_stays(tmp_path, before):
    (tmp_path / "README.md").write_bytes(before.encode())
    assert write_readme(tmp_path / "README.md", card())
    text = (tmp_path / "README.md").read_text()
    words = split_metadata(before.replace("\r\n", "\n"))[1].strip()
    assert words in text.replace("\r\n", "\n") and text.index("It acts.") > text.index(words[:8])
    again = card(CARD.replace("It acts.", "It acts better."))
    assert write_readme(tmp_path / "README.md", again)
    newer = (tmp_path / "README.md").read_text()
    assert newer == text.replace("It acts.", "It acts better."), "a second card changed more than the card"
    if "license" in before:
        assert metadata_load(tmp_path / "README.md")["license"] == "mit"
        assert set(metadata_load(tmp_path / "README.md")["tags"]) == {"mine", "kivla", "insulated"}


def test_words_around_the_card_stay(tmp_path):
    write_readme(tmp_path / "README.md", card())
    text = (tmp_path / "README.md").read_text()
    edited = text.replace(BEGIN, f"Hello.\n\n{BEGIN}").replace(END, f"{END}\n\nThanks to all.")
    (tmp_path / "README.md").write_text(edited)
    write_readme(tmp_path / "README.md", card(CARD.replace("# A policy", "# Another")))
    assert author_words((tmp_path / "README.md").read_text()) == ("Hello.", "Thanks to all.")
    assert "# A policy" not in (tmp_path / "README.md").read_text()


def test_metadata_that_the_author_changed_stay_and_ours_are_renewed():
    text = with_card("", card())
    text = text.replace("library_name: kivla", "library_name: lerobot\nbase_model: me/vlm").replace(
        "- kivla", "- mine", 1
    )
    text = with_card(text, card(CARD.replace("insulated", "joint")))
    metadata, _ = split_metadata(text)
    assert metadata == {"library_name": "lerobot", "base_model": "me/vlm", "tags": ["joint", "mine"]}, metadata


def test_results_of_the_author_stay_beside_the_new_ones():
    def result(name: str, value: float) -> str:
        return (
            f"  - task:\n      type: robotics\n    dataset:\n      name: {name}\n      type: {name}\n    metrics:\n"
            f"    - type: mae\n      value: {value}\n"
        )

    def with_result(value: float) -> ModelCard:
        index = f"model-index:\n- name: A policy\n  results:\n{result('train', value)}"
        return card(CARD.replace("library_name", index + "library_name"))

    text = with_card("", with_result(0.5))
    mine = "    - type: mae\n      value: 0.5\n"
    assert mine in text
    text = text.replace(mine, mine + result("my kitchen", 0.25), 1)
    results = split_metadata(with_card(text, with_result(0.125)))[0]["model-index"][0]["results"]
    assert [(r["dataset"]["name"], r["metrics"][0]["value"]) for r in results] == [
        ("train", 0.125),
        ("my kitchen", 0.25),
    ]


def test_a_licence_that_is_asked_for_is_written_and_stays():
    licensed = card(CARD.replace("library_name", "license: apache-2.0\nlibrary_name"))
    text = with_card(AUTHORS, licensed)
    assert split_metadata(text)[0]["license"] == "apache-2.0"
    assert split_metadata(with_card(text, card()))[0]["license"] == "apache-2.0"


def test_words_of_two_versions_are_joined():
    """What stands on the Hub, and what was written here."""
    base = with_card("", card())
    hub = base.replace("---\n\n", "license: mit\n---\n\nFrom the Hub.\n\n", 1)
    here = base.replace("---\n\n", "language: en\n---\n\nFrom here.\n\n", 1)
    text = with_card(join_readmes(hub, here), card())
    before, after = author_words(text)
    assert (before, after) == ("From the Hub.", "From here.") and text.count(BEGIN) == 1
    metadata, _ = split_metadata(text)
    assert metadata["license"] == "mit" and metadata["language"] == "en"
    assert with_card(join_readmes(hub, text), card()) == text, "joined twice, the words stand there twice"
    assert split_metadata(with_card(join_readmes("", here), card()))[1] == split_metadata(here)[1], "nothing on the Hub"


@pytest.mark.parametrize("broken", ["---\na: [1\n---\nWords.", "---\n- a\n---\nWords."])
def test_metadata_that_cannot_be_read_are_refused_and_nothing_is_written(tmp_path, broken):
    (tmp_path / "README.md").write_text(broken)
    with pytest.raises(ValueError, match=r"metadata at the top of README\.md"):
        write_readme(tmp_path / "README.md", card())
    assert (tmp_path / "README.md").read_text() == broken
