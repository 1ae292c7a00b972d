"""A processor that is pushed by itself: a line that says what it is, where the Hub has no card yet."""

from pathlib import Path

# As in `modeling_kivla/hub_card.py`, which travels on its own: the policy's card takes the place of what is between.
_TEXT = """---
library_name: kivla
tags:
- kivla
- robotics
---

<!-- KIVLA writes what follows; words before and after it stay. -->
<!-- A minimal card: it gives way to a fuller one. -->
The processor of a robot policy made with KIVLA: `KIVLAProcessor.from_pretrained("{repo_id}")`.
<!-- Until here. -->
"""
# In the card that the library writes where there is none
_LIBRARYS = "This is the model card of a 🤗 transformers model that has been pushed on the Hub."


class PushedWithCard:
    """Gives a processor that is pushed by itself a card that says what it is. For a processor class."""

    def _upload_modified_files(self, working_dir, repo_id: str, *args, **kwargs):
        """Called by the library's `push_to_hub`: in the folder is the Hub's card, or a template where it has none."""
        path = Path(working_dir) / "README.md"
        if _LIBRARYS in path.read_text(encoding="utf-8"):
            path.write_text(_TEXT.format(repo_id=repo_id), encoding="utf-8")
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)
