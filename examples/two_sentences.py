"""Draw a policy that follows two different sentences in the same scenes, side by side, as a GIF.

    python examples/two_sentences.py outputs/demo_10_minutes/policy --output docs/assets/two_sentences.gif

The picture in the README was made by this command. The scenes are fresh ones, of the demo's evaluation. They are chosen
to be short and clear: how often the policy does as it is told is in the table of the README, not in this picture. A
sentence turns green where it was fulfilled, red where it was not.
"""

import argparse
from pathlib import Path

import gymnasium
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from transformers import pipeline

import kivla.simulation  # noqa: F401 (makes the environment known to gymnasium)
from kivla import ChunkExecutor

FIRST_SEED = 2_000_000  # the demo's evaluation; its demonstrations begin at 0
FRAMES_PER_SECOND, SECONDS_BEFORE, SECONDS_AFTER = 10, 0.8, 1.2
SIZE, GAP, CAPTION = 300, 12, 40  # pixels: of a view, around it, above it
PAGE, WAITING, FULFILLED, FAILED, PATH = "#15161a", "#ffffff", "#4cc38a", "#ff6369", "#9a9ca5"


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw a policy that follows two sentences in the same scenes.")
    parser.add_argument("policy", nargs="?", default="outputs/demo_10_minutes/policy", help="a folder or a Hub id")
    parser.add_argument("--output", default="outputs/two_sentences.gif")
    parser.add_argument("--scenes", type=int, nargs="+", default=[0, 3, 5, 6], help="numbers of the scenes")
    args = parser.parse_args()

    pipe = pipeline("action-prediction", model=args.policy)  # pyright: ignore[reportCallIssue, reportArgumentType]
    act = ChunkExecutor(pipe, replan_every=4, seed=0)
    env = gymnasium.make("KIVLA/Tabletop-v0", render_mode="rgb_array", render_size=SIZE)
    pages = []
    for seed in [FIRST_SEED + number for number in args.scenes]:
        _, info = env.reset(seed=seed)
        films = [film(act, env, seed, info[name]) for name in ("instruction", "swapped_instruction")]
        before, after = (round(seconds * FRAMES_PER_SECOND) for seconds in (SECONDS_BEFORE, SECONDS_AFTER))
        for i in range(-before, max(map(len, films)) + after):
            page = Image.new("RGB", (2 * SIZE + 3 * GAP, SIZE + GAP + CAPTION), PAGE)
            for column, views in enumerate(films):
                page.paste(views[min(max(i, 0), len(views) - 1)], (GAP + column * (SIZE + GAP), 0))
            pages.append(page.quantize(64))
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    pages[0].save(
        args.output, save_all=True, append_images=pages[1:], duration=1000 // FRAMES_PER_SECOND, loop=0, optimize=True
    )
    print(f"{len(args.scenes)} scenes in {args.output}, {Path(args.output).stat().st_size / 1e6:.2f} MB")


def film(act: ChunkExecutor, env: gymnasium.Env, seed: int, sentence: str) -> list[Image.Image]:
    """An episode in which the policy is told this sentence: a captioned view of every step."""
    observation, info = env.reset(seed=seed, options={"instruction": sentence})
    act.reset()
    scenes, path, is_over = [np.asarray(env.render())], [observation["state"][:2]], False
    while not is_over:
        images = {"observation.images.top": observation["images"]["top"]}
        action = act({"images": images, "text": sentence, "state": observation["state"]})
        observation, _, terminated, truncated, info = env.step(action)
        scenes.append(np.asarray(env.render()))
        path.append(observation["state"][:2])
        is_over = terminated or truncated
    outcomes = [WAITING] * (len(scenes) - 1) + [FULFILLED if info["swapped_success"] else FAILED]
    return [view(scene, path[: i + 1], sentence, outcomes[i]) for i, scene in enumerate(scenes)]


def view(scene: np.ndarray, path: list[np.ndarray], sentence: str, color: str) -> Image.Image:
    """The scene under its sentence, with dots where the gripper has been."""
    image = Image.new("RGB", (SIZE, SIZE + CAPTION), PAGE)
    image.paste(Image.fromarray(scene), (0, CAPTION))
    draw = ImageDraw.Draw(image)
    for x, y in path[:-1]:
        draw.circle(((x + 1) / 2 * SIZE, CAPTION + (1 - y) / 2 * SIZE), 2, fill=PATH)
    draw.text((SIZE / 2, CAPTION / 2), f"“{sentence}”", color, ImageFont.load_default(18), anchor="mm")
    return image


if __name__ == "__main__":
    main()
