"""A policy that is pushed by itself: a card that says what it is, where the Hub has none yet."""

import re
from pathlib import Path

from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id, yaml_dump

# A fuller card is written between these lines; all outside of them is its author's (`hub_cards/readme.py`).
BEGIN, END = "<!-- KIVLA writes what follows; words before and after it stay. -->", "<!-- Until here. -->"
MINIMAL = "<!-- A minimal card: it gives way to a fuller one. -->"
TAGS = ("kivla", "robotics", "vision-language-action")
# In the card that the library writes where there is none
_LIBRARYS = "This is the model card of a 🤗 transformers model that has been pushed on the Hub."
_TEXT = """{begin}
{minimal}
# {name}

A robot policy made with KIVLA: a `{vlm}` that learns action tokens, and an action expert that reads it and moves the
robot, {chunk_size} actions at a time.

```python
from transformers import pipeline

pipe = pipeline("action-prediction", model="{repo_id}", trust_remote_code=True)
```

What it was trained on, and how well it does, is not described yet.
{end}"""


def hub_id(name: str | None) -> str | None:
    """`name` if it is one on the Hub (owner/name), and None if it is a folder of this machine."""
    if not name or name.count("/") != 1 or Path(name).exists():
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


class PushedWithCard:
    """For a model class: `push_to_hub` writes a minimal card where there is none, and keeps the one that is there."""

    def save_pretrained(self, save_directory, *args, push_to_hub: bool = False, **kwargs):
        """As for any model. With `push_to_hub`, a README.md in `save_directory` is left as it is."""
        names = ("repo_id", "commit_message", "commit_description", "private", "revision", "create_pr", "tags")
        pushed = {name: kwargs.pop(name) for name in names if name in kwargs}
        super().save_pretrained(save_directory, *args, **kwargs)
        if push_to_hub:
            pushed |= {name: kwargs[name] for name in ("token", "max_shard_size") if name in kwargs}
            self.push_to_hub(pushed.pop("repo_id", Path(save_directory).name), **pushed)

    def _upload_modified_files(self, working_dir, repo_id: str, *args, **kwargs):
        """Called by the library's `push_to_hub`: in the folder is the Hub's card, or a template where it has none."""
        path = Path(working_dir) / "README.md"
        card = ModelCard.load(path)
        values = {"name": repo_id.partition("/")[2], "repo_id": repo_id, "vlm": type(self.vlm).__name__}
        values |= {"chunk_size": self.config.chunk_size, "begin": BEGIN, "end": END, "minimal": MINIMAL}
        ours, text, data = _TEXT.format(**values), card.text, card.data.to_dict()
        if _LIBRARYS in text:
            text, data = f"\n{ours}\n", {"tags": data.get("tags") or []}
        elif MINIMAL in text:  # of the processor, perhaps; an author may have written around it
            text = re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: ours, text, flags=re.DOTALL)
        path.write_text(f"---\n{yaml_dump(self._metadata(data), sort_keys=False)}---\n{text}", encoding="utf-8")
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)

    def _metadata(self, given: dict) -> dict:
        """What a card has, and what it lacks."""
        ours = {"library_name": "kivla", "pipeline_tag": "robotics", "base_model": hub_id(base_name(self))}
        tags = list(dict.fromkeys([*given.get("tags", []), *TAGS]))
        return {**{name: value for name, value in ours.items() if value is not None}, **given, "tags": tags}


def base_name(model) -> str:
    """Where the VLM came from, as it was named; "" if it was made from a config."""
    return model.vlm.config._name_or_path
