"""Images with text, as VLM fine-tuning has them, as examples for a policy."""

import datasets
import torch


class VLMDataset(torch.utils.data.Dataset):
    """Rows of `images` and conversational `messages` -> examples with `images`, `text` and `response`.

    Args:
        rows: a `datasets` dataset; the content of a message is a list of `{"type": "image" or "text", "text": ...}`.
            A row has one question of the user and one answer of the assistant.

    Raises:
        ValueError: a row with more or other messages, when it is read.
    """

    def __init__(self, rows: datasets.Dataset):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        row = self.rows[index]
        roles = [message["role"] for message in row["messages"]]
        if roles != ["user", "assistant"]:
            raise ValueError(f"Row {index} has messages of {roles}; expected is a question of the user and an answer.")
        question, answer = map(text_of, row["messages"])
        return {"images": row["images"], "text": question, "response": answer}


def text_of(message: dict) -> str:
    """The words of a message, without its images."""
    return "".join(item["text"] for item in message["content"] if item["type"] == "text")


__all__ = ["VLMDataset", "text_of"]
