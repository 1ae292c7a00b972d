"""A KIVLA policy -> a folder that LeRobot's programs load.

python -m lerobot_policy_kivla.export KIVLA_POLICY LEROBOT_FOLDER
lerobot-eval --policy.path=LEROBOT_FOLDER ...
"""

import argparse
from pathlib import Path

from lerobot.configs import FeatureType, PolicyFeature
from lerobot.utils.constants import ACTION, OBS_STATE

from kivla import KIVLAForActionPrediction, KIVLAProcessor

from .configuration_kivla import KivlaConfig
from .modeling_kivla import KivlaPolicy
from .observations import image_key
from .processor_kivla import make_kivla_pre_post_processors


def export(
    kivla_policy: str | Path,
    lerobot_folder: str | Path,
    robot: str | None = None,
    image_size: tuple[int, int] = (480, 640),
    trust_remote_code: bool = False,
) -> None:
    """Write `config.json` and LeRobot's two processors, and the KIVLA policy itself in the sub-folder `kivla/`.

    Args:
        kivla_policy: a folder or a Hub id.
        lerobot_folder: what to write; must not exist, or be empty.
        robot: name of the robot, for a policy of several.
        image_size: height and width of the robot's images. KIVLA takes any; LeRobot's asynchronous policy server
            resizes to this.
        trust_remote_code: run the code that the policy brings along for its VLM.

    Raises:
        FileExistsError: there is something in the folder.
        ValueError: a policy of several robots without `robot`, or one without names for its cameras.
    """
    folder = Path(lerobot_folder)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty. Name a new folder.")
    processor = KIVLAProcessor.from_pretrained(kivla_policy, trust_remote_code=trust_remote_code)
    model = KIVLAForActionPrediction.from_pretrained(kivla_policy, trust_remote_code=trust_remote_code)
    parts = processor.robot(robot)
    state = {}
    parts.units.check_known()
    if parts.needs_state:
        state[OBS_STATE] = PolicyFeature(FeatureType.STATE, (parts.units.state_dim or processor.max_state_dim,))
    images = {image_key(camera): PolicyFeature(FeatureType.VISUAL, (3, *image_size)) for camera in parts.cameras or []}
    config = KivlaConfig(
        input_features={**images, **state},
        output_features={ACTION: PolicyFeature(FeatureType.ACTION, (parts.action_dim,))},
        chunk_size=processor.chunk_size,
        history=processor.history,
        history_stride=processor.history_stride,
        n_action_steps=processor.chunk_size,
        robot=robot,
    )
    policy = KivlaPolicy(config, model, processor)
    for pipeline in make_kivla_pre_post_processors(config):
        pipeline.save_pretrained(folder)
    config.device = None  # that of the machine where it is loaded, and not of this one
    policy.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lerobot_policy_kivla.export", description=__doc__.split("\n")[0])
    parser.add_argument("kivla_policy", help="folder or Hub id of a KIVLA policy")
    parser.add_argument("lerobot_folder", help="folder to write")
    parser.add_argument("--robot", help="whose cameras, state and actions, for a policy of several robots")
    parser.add_argument(
        "--image_size", type=int, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"), help="of the robot's images"
    )
    parser.add_argument("--trust_remote_code", action="store_true", help="run the code that it brings along")
    export(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
