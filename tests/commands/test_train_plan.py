"""`kivla train --plan`: what the run would say of itself, without its weights and without its folder."""

import re
import shutil

import pytest
import torch

from kivla.cli import main
from kivla.demo.tiny_vlm import save_tiny_vlm
from tests.commands.test_train_options import command
from tests.helpers.policies import DATASET


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan") / "vlm"
    save_tiny_vlm(folder, image_size=32, patch_size=16, hidden_size=32, num_layers=2)
    return folder


def planned(printed: str) -> str:
    """The plan's lines, without the free space on the disk, which changes."""
    return re.sub(r" \([^()]* free\)", "", printed[printed.index("\nPlan") : printed.index("\ntime ")])


def table(printed: str) -> dict[str, list[float]]:
    """The rows of the memory's table, in bytes."""
    rows = {}
    for line in printed[printed.index("Memory of a step") :].splitlines()[1:]:
        if sizes := re.findall(r"([\d.]+) ([MG])B", line):
            rows[line[:44].strip()] = [float(number) * {"M": 1e6, "G": 1e9}[unit] for number, unit in sizes]
    return rows


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lora_rank": 2, "gradient_checkpointing": "true"},
        {"recipe": "insulated-warmup", "ema_decay": 0.9, "max_steps": 4},
    ],
    ids=["all of it", "LoRA", "stages"],
)
def test_the_plan_is_that_of_the_run(vlm, tmp_path, capsys, options):
    main(command(vlm, tmp_path / "run", **options))
    said = capsys.readouterr().out
    shutil.copytree(vlm, tmp_path / "vlm", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "run").rename(tmp_path / "done")
    main([*command(tmp_path / "vlm", tmp_path / "run", **options), "--plan"])
    alone = capsys.readouterr().out
    assert planned(alone) == planned(said)
    assert not (tmp_path / "run").exists()


def test_a_policy_that_goes_on_is_planned_without_its_weights(vlm, tmp_path, capsys):
    main(command(vlm, tmp_path / "policy"))
    go_on = ["train", "--policy", str(tmp_path / "policy"), "--dataset", str(DATASET), "--max_steps", "2"]
    go_on += ["--output_dir", str(tmp_path / "run")]
    capsys.readouterr()
    main(go_on)
    said = capsys.readouterr().out
    (tmp_path / "run").rename(tmp_path / "done")
    (tmp_path / "policy" / "model.safetensors").unlink()
    main([*go_on, "--plan"])
    assert planned(capsys.readouterr().out) == planned(said)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is one")
def test_a_gpu_is_planned_where_there_is_none_and_several_share(vlm, tmp_path, capsys):
    main([*command(vlm, tmp_path / "run", preset="medium", gradient_checkpointing="false", use_cpu="false"), "--plan"])
    rows = table(capsys.readouterr().out)
    for name in ("weights", "gradients", "moments"):
        assert rows[name] == pytest.approx([rows[name][0] / count for count in (1, 2, 4, 8)], rel=0.01)
    assert rows["at the peak"] == sorted(rows["at the peak"], reverse=True)
    assert all(less < more for less, more in zip(*list(rows.values())[-1:-3:-1], strict=True)), "checkpointing"
    with pytest.raises(SystemExit):
        main(command(vlm, tmp_path / "run", preset="medium", use_cpu="false"))
    assert "needs a GPU" in capsys.readouterr().err


def test_what_a_run_refuses_a_plan_refuses(vlm, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([*command(vlm, tmp_path / "run", recipe="pi0", vlm_share=0.5), "--plan"])
    assert "vlm_share" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    for folder, said in ((tmp_path / "file", "is a file"), (vlm, "is what the run begins with")):
        with pytest.raises(SystemExit):
            main([*command(vlm, folder), "--plan"])
        assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
