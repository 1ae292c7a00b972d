"""Fill a template of a card."""

from pathlib import Path

from huggingface_hub import CardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined


def render(kind: type, template: Path, data: CardData, **values):
    """A card from a template, with filters for what names may hold: `cell` in a table, `code` as a Python string."""
    environment = Environment(
        loader=FileSystemLoader(template.parent), undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.filters |= {"cell": cell, "code": code}
    return kind(environment.get_template(template.name).render(card_data=data.to_yaml(), **values))


def cell(value) -> str:
    """One line of text that ends no cell of a table and starts no HTML."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")


def code(text: str) -> str:
    """A string as Python code has it."""
    return f'"{text}"' if text.isprintable() and not set('"\\') & set(text) else repr(text)
