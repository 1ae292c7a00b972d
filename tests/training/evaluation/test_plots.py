"""Pictures of chunks and of a training: nothing lies on anything else, and no panel is empty."""

from itertools import pairwise

import numpy as np
import pytest
from matplotlib.figure import Figure

from kivla.training.evaluation.plots import plot_chunks, plot_training_curves

LONG = "go to the circle that is yellow, then go to the square that is purple\nepisode 1, frame 14"


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures, in place of their files."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: figures.append(figure))
    return figures


def test_titles_of_chunks_lie_beside_one_another(drawn):
    chunks = np.zeros((4, 8, 2))
    plot_chunks("chunks.png", chunks, chunks, 10, [LONG] * 4)
    figure = drawn[0]
    figure.draw_without_rendering()
    titles = [axis.title.get_window_extent() for axis in figure.axes if axis.get_title()]
    assert len(titles) == 4
    assert all(left.x1 < right.x0 for left, right in pairwise(titles))


@pytest.mark.parametrize(
    ("logged", "panels"),
    [
        ({"token_loss": 2.0, "backbone_grad_norm": 1.0}, ["token loss", "backbone grad norm"]),  # no expert learns
        ({"flow_loss": 2.0, "expert_grad_norm": 1.0}, ["flow loss", "expert grad norm"]),  # no tokens are learned
        ({"token_loss": 2.0, "text_loss": 1.0, "flow_loss": 1.0}, ["token loss and text loss", "flow loss"]),
    ],
)
def test_what_is_not_logged_has_no_panel(logged, panels, drawn):
    plot_training_curves("training.png", [{"step": step, **logged} for step in (1, 2)])
    axes = drawn[0].axes
    assert [axis.get_title() for axis in axes] == panels and all(axis.lines for axis in axes)
