"""README.md of a policy or dataset: a card, between two lines of its own, and the rest, which is its author's.

A card is written again whenever a run ends, and by hand (`kivla card`). What somebody wrote in the meantime, around the
card or into its metadata, stays. What was written into the metadata is kept in a comment, so that the author's changes
can be told from it.
"""

import json
import re
from pathlib import Path

import yaml
from huggingface_hub import RepoCard, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import yaml_dump

# The card stands between these lines, in the minimal cards of a model or processor pushed by itself, too.
BEGIN, END = "<!-- KIVLA writes what follows; words before and after it stay. -->", "<!-- Until here. -->"
_PART = re.compile(f"{re.escape(BEGIN)}\n(?:<!-- metadata: (.*?) -->\n)?.*?{re.escape(END)}", re.DOTALL)
_METADATA = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_INDEX = "model-index"


def write_readme(path: Path, card: RepoCard) -> bool:
    """Write a card into README.md, and keep what its author wrote there.

    Returns:
        Whether there were words of an author.

    Raises:
        ValueError: the README's metadata (between its first two lines `---`) are no YAML.
    """
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    path.write_text(with_card(text, card), encoding="utf-8")
    return any(author_words(text))


def with_card(text: str, card: RepoCard) -> str:
    """A README with the card in it: in the place of the one that was there, otherwise at its end."""
    metadata, body = split_metadata(text)
    ours, last = card.data.to_dict(), metadata_of_card(body)
    kept = json.dumps(ours, ensure_ascii=True).replace("-", "\\u002d")  # a comment must not hold two of them
    part = f"{BEGIN}\n<!-- metadata: {kept} -->\n{card.text.strip()}\n{END}"
    if _PART.search(body):
        body = _PART.sub(lambda _: part, body, count=1)
    else:
        body = f"{body.rstrip()}\n\n{part}\n".lstrip("\n")
    return f"---\n{yaml_dump(merge_metadata(ours, metadata, last), sort_keys=False)}---\n\n{body}"


def join_readmes(text: str, other: str) -> str:
    """`text` with what the author of `other`, another version of it, wrote: metadata and words that it lacks."""
    metadata, body = split_metadata(text)
    more, other_body = split_metadata(other)
    own = {name: value for name, value in more.items() if value != metadata_of_card(other_body).get(name)}
    missing = []
    for words in author_words(other):
        for known in filter(None, author_words(text)):
            words = words.replace(known, "").strip()
        missing += [words] if words and words not in body else []
    body = "\n\n".join([body.strip(), *missing]) + "\n"
    return f"---\n{yaml_dump({**own, **metadata}, sort_keys=False)}---\n\n{body}"


def readme_on_hub(repo_id: str, revision: str | None = None, token: str | None = None) -> str:
    """The README of a model on the Hub; empty where there is none yet."""
    try:
        path = hf_hub_download(repo_id, "README.md", revision=revision, token=token)
    except (EntryNotFoundError, RevisionNotFoundError):
        return ""
    return Path(path).read_text(encoding="utf-8")


def author_words(text: str) -> tuple[str, str]:
    """The author's, before and after the card."""
    body = split_metadata(text)[1]
    before, _, after = _PART.sub("\0", body, count=1).partition("\0")
    return before.strip(), after.strip()


def split_metadata(text: str) -> tuple[dict, str]:
    """Metadata and the rest."""
    match = _METADATA.match(text)
    if match is None:
        return {}, text.lstrip()
    try:
        metadata = yaml.safe_load(match[1]) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"The metadata at the top of README.md are no YAML ({error}). Mend them first.") from error
    if not isinstance(metadata, dict):
        raise ValueError("The metadata at the top of README.md must be lines of `name: value`. Mend them first.")
    return metadata, text[match.end() :].lstrip()


def metadata_of_card(body: str) -> dict:
    """What was last written into the metadata; nothing where the README has no card."""
    match = _PART.search(body)
    return json.loads(match[1]) if match and match[1] else {}


def merge_metadata(ours: dict, theirs: dict, last: dict) -> dict:
    """Metadata: the author's where they are not what was `last` written here, ours otherwise.

    Of lists of words (tags, datasets) and of results, what the author added stays and what they removed stays out. A
    licence is ours only where it was asked for.
    """
    result = {}
    for name in dict.fromkeys([*ours, *theirs]):
        own, mine, before = theirs.get(name), ours.get(name), last.get(name)
        if name == _INDEX and mine and own:
            result[name] = _merged_index(mine, own, before or [])
        elif _is_words(own) and _is_words(mine):
            result[name] = _merged_list(mine, own, before if _is_words(before) else [])
        elif name == "license":
            result[name] = mine or own
        elif own is None and before is not None and name not in theirs:
            continue  # the author removed it
        else:
            result[name] = mine if own is None or own == before else own
    return {name: value for name, value in result.items() if value is not None}


def _is_words(value) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _merged_list(ours: list, theirs: list, last: list) -> list:
    added = [item for item in theirs if item not in last and item not in ours]
    return [item for item in ours if item in theirs or item not in last] + added


def _merged_index(ours: list[dict], theirs: list[dict], last: list[dict]) -> list[dict]:
    """A model index has one entry, with a name and its results."""
    results = [entries[0].get("results", []) if entries else [] for entries in (ours, theirs, last)]
    return [{"name": ours[0]["name"], "results": _merged_list(*results)}, *theirs[1:]]
