"""Let a policy act, one action at a time, as on a robot. Here the robot is the simulated table.

    python examples/act_in_a_loop.py outputs/example_policy           # made by examples/train.py
    python examples/act_in_a_loop.py outputs/demo_10_minutes/policy   # made by make demo

On a robot of your own, `env.reset` and `env.step` are your robot's cameras and motors. The rest stays.
"""

import argparse

import gymnasium
from transformers import pipeline

import kivla.simulation  # noqa: F401 (makes the environment known to gymnasium)
from kivla import ChunkExecutor


def main() -> None:
    parser = argparse.ArgumentParser(description="Let a policy act, one action at a time.")
    parser.add_argument("policy", nargs="?", default="outputs/example_policy", help="a folder or a Hub id")
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--replan_every", type=int, default=4, help="actions between two looks at the scene")
    parser.add_argument("--instruction", help="tell the policy this, in place of each scene's own instruction")
    args = parser.parse_args()

    env = gymnasium.make("KIVLA/Tabletop-v0", kinds=["touch"])
    pipe = pipeline("action-prediction", model=args.policy)  # pyright: ignore[reportCallIssue, reportArgumentType]
    act = ChunkExecutor(pipe, replan_every=args.replan_every)
    successes = 0
    for episode in range(args.episodes):
        observation, info = env.reset(seed=1_000_000 + episode)  # far from the scenes of the demonstrations
        act.reset()
        steps, is_over = 0, False
        while not is_over:
            text = args.instruction or info["instruction"]
            # Images by the camera's name in the dataset; state and action in the robot's units.
            images = {"observation.images.top": observation["images"]["top"]}
            action = act({"images": images, "text": text, "state": observation["state"]})
            observation, _, terminated, truncated, info = env.step(action)
            steps, is_over = steps + 1, terminated or truncated
        successes += info["success"]
        print(f"{text}: {'done' if info['success'] else 'failed'} after {steps} steps")
    print(f"{successes} of {args.episodes} scenes")


if __name__ == "__main__":
    main()
