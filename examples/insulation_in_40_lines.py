"""Which loss moves what? The gradients of both losses, insulated (scale 0) and trained jointly (scale 1).

python examples/insulation_in_40_lines.py --vlm google/paligemma2-3b-pt-224    # any VLM; a small one by default
"""

import argparse

import torch

from kivla import BinningActionTokenizer, KIVLACollator, KIVLAForActionPrediction, KIVLAProcessor, LeRobotDataset

parser = argparse.ArgumentParser()
parser.add_argument("--vlm", default="simulation/tabletop_vlm")
parser.add_argument("--dataset", default="tests/data/lerobot_v3_metaworld")
args = parser.parse_args()

data = LeRobotDataset(args.dataset, chunk_size=8)
sizes = {"chunk_size": 8, "max_action_dim": data.action_dim}
robot = {"statistics": data.statistics, "cameras": data.cameras}
processor = KIVLAProcessor.from_vlm(args.vlm, action_tokenizer=BinningActionTokenizer(), **robot, **sizes)
model = KIVLAForActionPrediction.from_vlm(args.vlm, expert_config={"hidden_size": 64}, **sizes)
model.resize_token_embeddings(processor.vocab_size)
for weight in model.expert.parameters():  # a new expert's gates are closed: it would not read the VLM yet
    torch.nn.init.normal_(weight, std=0.1)
batch = KIVLACollator(processor)([data[0], data[100]])


def norm(part) -> str:
    gradients = [weight.grad for weight in part.parameters() if weight.grad is not None]
    return f"{torch.nn.utils.get_total_norm(gradients):.4f}" if gradients else "None"


print("backbone_gradient_scale  loss        gradient of the VLM  of the expert")
for scale in (0.0, 1.0):
    for loss in ("token_loss", "flow_loss"):
        model.config.backbone_gradient_scale = scale
        model.zero_grad()
        torch.manual_seed(0)  # the same noise each time
        model(**batch)[loss].backward()
        print(f"{scale:<25}{loss:<12}{norm(model.vlm):>19}{norm(model.expert):>15}")
