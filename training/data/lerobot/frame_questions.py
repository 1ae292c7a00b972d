"""Questions about the frames of robot demonstrations, as VLM data of the same dataset."""

from collections.abc import Sequence

import torch

from ..robot_dataset import RobotDataset


class FrameQuestions(torch.utils.data.Dataset):
    """One item for each question: `images` (the picture of one camera, or of all), `text` and `response`.

    Args:
        data: the demonstrations.
        questions: (item of `data`, camera or None for all, question, answer) each.
    """

    def __init__(self, data: RobotDataset, questions: Sequence[tuple[int, str | None, str, str]]):
        self.data = data
        self.questions = list(questions)

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> dict:
        item, camera, question, answer = self.questions[index]
        images = [image[-1] if isinstance(image, list) else image for image in self.data[item]["images"]]
        if camera is not None:
            images = [images[self.data.cameras.index(camera)]]
        return {"images": images, "text": question, "response": answer}

    def size_of(self, index: int) -> tuple[int, int]:
        """How many images an item has and how many characters of text; no image is read."""
        _, camera, question, answer = self.questions[index]
        return len(self.data.cameras) if camera is None else 1, len(question) + len(answer)


__all__ = ["FrameQuestions"]
