"""A first lesson for a new projector, without the language model: what a patch shows is near to the word for it.

A projector that is trained through a language model has to find out what its words mean from very few answers. The
words are known: those for the colour, the shape and the place of what lies on a patch, and none for a bare patch. Their
embeddings pull at the projected patches, which takes seconds and makes questions easy.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, ProcessorMixin

from ..simulation.tabletop.questions import with_gripper
from ..simulation.tabletop.rendering import render
from ..simulation.tabletop.scenes import ALL_PAIRS, COLOR_NAMES, SHAPE_NAMES, Scene, pair_name, place_of, sample_scene
from ..training.muon import MuonWithAdamW

PLACE_NAMES = ("top", "bottom", "left", "right", "center")
WORDS = (*COLOR_NAMES, *SHAPE_NAMES, *PLACE_NAMES, "gripper")
BATCH_SIZE = 32
SHARPNESS = 15.0  # of the cosine between a patch and a word
POSITIVE_WEIGHT = 5.0  # few words fit a patch
NEAR = 1.6  # patches: closer to the middle of a thing, a patch may show a part of it


class Lesson(NamedTuple):
    """`features` (N, P, W) of the tower; `shows` and `counts` (N, P, words): which words fit, where that is clear."""

    features: torch.Tensor
    shows: torch.Tensor
    counts: torch.Tensor


def align_words(
    vlm: PreTrainedModel,
    processor: ProcessorMixin,
    num_scenes: int = 600,
    num_steps: int = 300,
    learning_rate: float = 5e-3,
    seed: int = 0,
) -> float:
    """Train the projector of a LLaVA alone; what it projects has the size of words' embeddings.

    Returns:
        the share of the objects' patches in fresh scenes that are nearest to the right colour.
    """
    projector = vlm.model.multi_modal_projector
    words = word_embeddings(vlm, processor)
    lesson = make_lesson(vlm, processor, num_scenes, seed)
    _standardize_inputs(projector, lesson.features)
    bias = torch.nn.Parameter(torch.full((len(WORDS),), -4.0))
    for parameter in projector.parameters():
        parameter.requires_grad_(True)
    optimizer = MuonWithAdamW([*projector.named_parameters(), ("bias", bias)], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(num_steps):
        rows = torch.randint(num_scenes, (BATCH_SIZE,), generator=generator)
        found = F.normalize(projector(lesson.features[rows]), dim=-1) @ words.T * SHARPNESS + bias
        loss = F.binary_cross_entropy_with_logits(
            found, lesson.shows[rows], lesson.counts[rows], pos_weight=torch.tensor(POSITIVE_WEIGHT)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        size = vlm.get_input_embeddings().weight.float().square().mean().sqrt()
        factor = size / projector(lesson.features[:BATCH_SIZE]).square().mean().sqrt()
        projector.linear_2.weight *= factor
        projector.linear_2.bias *= factor
        exam = make_lesson(vlm, processor, 100, seed + 1_000_000)
        colors = slice(len(COLOR_NAMES))
        there = exam.shows[..., colors].any(-1)
        nearest = (projector(exam.features[there]) @ words[colors].T).argmax(-1)
        return (nearest == exam.shows[there][:, colors].argmax(-1)).float().mean().item()


@torch.no_grad()
def _standardize_inputs(projector: torch.nn.Module, features: torch.Tensor) -> None:
    """New weights of the first layer, which sees every feature with mean 0 and size 1: towers have some huge ones."""
    mean, std = features.flatten(0, 1).mean(0), features.flatten(0, 1).std(0)
    projector.linear_1.reset_parameters()
    projector.linear_1.weight /= std
    projector.linear_1.bias.copy_(-(projector.linear_1.weight @ mean))


def word_embeddings(vlm: PreTrainedModel, processor: ProcessorMixin) -> torch.Tensor:
    """(words, width): directions of the embeddings of " red", " star", ..., from the mean of all."""
    weight = vlm.get_input_embeddings().weight.detach().float()
    ids = [processor.tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in WORDS]
    return F.normalize(torch.stack([weight[i].mean(0) for i in ids]) - weight.mean(0), dim=-1)


@torch.no_grad()
def make_lesson(vlm: PreTrainedModel, processor: ProcessorMixin, num_scenes: int, seed: int) -> Lesson:
    """Features of random scenes, and what each patch shows."""
    rng = np.random.default_rng(seed)
    scenes = [with_gripper(rng, sample_scene(rng, [ALL_PAIRS] * 3)) for _ in range(num_scenes)]
    pictures = render(Scene.stack(scenes), 48)
    features = []
    for start in range(0, num_scenes, 50):
        pixels = processor.image_processor(list(pictures[start : start + 50]), return_tensors="pt")["pixel_values"]
        features.append(tower_features(vlm, pixels))
    features = torch.cat(features)
    grid = round(features.shape[1] ** 0.5)
    shows, counts = zip(*(what_patches_show(scene, grid) for scene in scenes), strict=True)
    return Lesson(features, torch.tensor(np.stack(shows)), torch.tensor(np.stack(counts)))


def tower_features(vlm: PreTrainedModel, pixels: torch.Tensor) -> torch.Tensor:
    """(N, P, W): what the projector gets."""
    hidden = vlm.model.vision_tower(pixels, output_hidden_states=True).hidden_states[vlm.config.vision_feature_layer]
    return hidden[:, 1:] if vlm.config.vision_feature_select_strategy == "default" else hidden


def what_patches_show(scene: Scene, grid: int) -> tuple[np.ndarray, np.ndarray]:
    """(grid², words) twice, float32: 1 where a word fits a patch; and 1 where that is clear."""
    middles = (np.arange(grid) + 0.5) * 2 / grid - 1
    patches = np.stack(np.meshgrid(middles, -middles), -1).reshape(-1, 2)  # rows from the top, columns from the left
    points = np.concatenate([scene.positions, scene.gripper[None]])
    distances = np.abs(patches[:, None] - points).max(-1) * grid / 2  # (patches, objects and gripper), in patches
    shows = np.zeros((grid * grid, len(WORDS)), np.float32)
    counts = np.repeat((distances >= NEAR).all(1)[:, None], len(WORDS), axis=1).astype(np.float32)
    names = [*(pair_name(scene, i).split() for i in range(len(scene.colors))), ["gripper"]]
    for patch, point, words in zip(distances.argmin(0), points, names, strict=True):
        counts[patch] = 1
        shows[patch, [WORDS.index(word) for word in (*words, *place_of(point).split())]] = 1
    return shows, counts
