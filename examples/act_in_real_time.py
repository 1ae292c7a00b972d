"""Act without ever waiting for the policy: the next chunk is computed while the robot executes this one.

    python examples/act_in_real_time.py outputs/example_policy                    # made by examples/train.py
    python examples/act_in_real_time.py outputs/example_policy --way naive        # each chunk knows nothing of the last

The robot is the simulated table, which here moves on ten times a second, with a command or without one. On a robot of
your own, `look` reads cameras and joints, and `env.step` is your motors. The rest stays.
"""

import argparse

import gymnasium
import numpy as np
from transformers import pipeline

import kivla.simulation  # noqa: F401 (makes the environment known to gymnasium)
from kivla.acting import WAYS, ActionLimits, RealTimeExecutor, ticks


def main() -> None:
    parser = argparse.ArgumentParser(description="Act at a fixed rate, while the policy computes the next chunk.")
    parser.add_argument("policy", nargs="?", default="outputs/example_policy", help="a folder or a Hub id")
    parser.add_argument("--way", choices=WAYS, default="rtc", help="how chunks that come late are joined")
    parser.add_argument("--rate", type=float, default=10.0, help="control steps per second, as in the policy's data")
    parser.add_argument("--episodes", type=int, default=3)
    args = parser.parse_args()

    env = gymnasium.make("KIVLA/Tabletop-v0", kinds=["touch"])
    pipe = pipeline("action-prediction", model=args.policy)  # pyright: ignore[reportCallIssue, reportArgumentType]
    # Its actions are offsets (dx, dy) and a grip: it stands still at no offset, with the grip as it was.
    stand_still = np.array([0.0, 0.0, 1.0], np.float32)
    limits = ActionLimits(args.rate, max_speed=[1.2 * args.rate, 1.2 * args.rate, np.inf], offsets=True)
    with RealTimeExecutor(pipe, args.rate, args.way, hold=lambda last: last * stand_still, limits=limits) as act:
        for episode in range(args.episodes):
            observation, info = env.reset(seed=1_000_000 + episode)  # far from the scenes of the demonstrations
            text = info["instruction"]

            def look() -> dict:
                """What is seen now. It is called in the policy's thread, when the policy is asked."""
                images = {"observation.images.top": observation["images"]["top"]}  # noqa: B023 (the newest is meant)
                return {"images": images, "text": text, "state": observation["state"]}  # noqa: B023

            act.reset()
            for _ in ticks(args.rate):
                command = act(look)
                if command is None:  # the first chunk is not there yet: nothing is sent
                    continue
                observation, _, terminated, truncated, info = env.step(command)
                if terminated or truncated:
                    break
            print(f"{text}: {'done' if info['success'] else 'failed'}")
    print(
        f"{act.counts}\nAn answer takes {1000 * act.latency.seconds:.0f} ms; {limits.share:.1%} of values were limited."
    )
    if act.last_error is not None:
        print(f"The last error: {act.last_error!r}")


if __name__ == "__main__":
    main()
