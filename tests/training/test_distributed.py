"""Several processes train what one does: DDP, FSDP2 and DeepSpeed, whatever the examples of each rank teach."""

import contextlib
import importlib.util
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate.commands.config import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin, prepare_multi_gpu_env
from accelerate.utils.launch import prepare_deepspeed_cmd_env
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch.distributed.fsdp.fully_sharded_data_parallel import StateDictType
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

from kivla import KIVLAConfig, KIVLAForActionPrediction, KIVLAProcessor
from kivla.cli import main
from kivla.commands.launch_files import LAUNCH_FILES
from tests.helpers.families import FAMILIES
from tests.helpers.patience import PATIENCE
from tests.helpers.tolerance import assert_gradients_close
from tests.training.distributed_runs import COPIED_FAMILIES, LEARNING_RATE, SHARDED_FAMILIES, STEPS, make_trainer, run

ROOT = Path(__file__).parents[2]
# Losses differ by rounding of sums in another order, relative to their own size; weights by what Adam makes of it over
# 20 steps, relative to what a step moves them by. Measured: 2e-6 and 4e-4.
LOSSES = {"rtol": 2e-5, "atol": 0}
WEIGHTS = {"rtol": 0, "atol": 5e-3 * LEARNING_RATE}

FSDP2 = [
    "fsdp2-paligemma-evaluated",
    "fsdp2-qwen3_vl",
    "fsdp2-paligemma-joint",
    "fsdp2-paligemma-accumulated",
    "fsdp2-paligemma-resumed",
    "fsdp2-paligemma-bf16",
]
DDP = ["ddp-paligemma-evaluated", "ddp-qwen3_vl", "ddp-paligemma-joint", "ddp-paligemma-accumulated"]
DDP += ["ddp-paligemma-warmup", "ddp-paligemma-texts"]
ALONE = ("paligemma-evaluated", "qwen3_vl", "paligemma-joint", "paligemma-warmup", "paligemma-texts")
has_deepspeed = importlib.util.find_spec("deepspeed") is not None


def environment(**variables: str) -> dict[str, str]:
    # ACCELERATE_USE_CPU keeps what is meant for GPUs on the CPU, with gloo; a process that is aborted says where it was
    ours = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONFAULTHANDLER": "1", "PYTHONPATH": str(ROOT)}
    return {**os.environ, **ours, **variables}


def launch(config: str, folder: Path, runs: list[str], machines: int = 1, **variables: str) -> None:
    """Two processes, on this machine or as if on `machines`, one launcher each."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(LAUNCH_FILES / config)]
    command += ["--num_processes", "2", "--mixed_precision", "no", "--num_machines", str(machines)]
    command += ["--main_process_ip", "127.0.0.1", "--main_process_port", "0" if machines == 1 else free_port()]
    launchers = []
    for rank in range(machines):
        log = (folder / f"launcher_{rank}.log").open("w")
        script = ["--machine_rank", str(rank), "-m", "tests.training.distributed_runs", str(folder), *runs]
        launchers.append(
            subprocess.Popen([*command, *script], env=environment(**variables), cwd=ROOT, stdout=log, stderr=log)
        )
    try:
        codes = [launcher.wait(timeout=PATIENCE) for launcher in launchers]
    finally:
        for launcher in launchers:
            launcher.terminate()
    logs = "".join((folder / f"launcher_{rank}.log").read_text()[-10_000:] for rank in range(machines))
    assert codes == [0] * machines, logs


def free_port() -> str:
    """Not one of those that the system hands out by itself: somebody else might get it before the launchers do."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return str(port)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder with the results of all runs: sharded and not, started as if on two machines."""
    folder = tmp_path_factory.mktemp("distributed")
    launch("fsdp2.yaml", folder, ["families", *FSDP2, *DDP], machines=2)
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same trainings in one process."""
    folder = tmp_path_factory.mktemp("alone")
    for name in ALONE:
        run(folder, f"alone-{name}")
    return {name: torch.load(folder / f"alone-{name}.pt") for name in ALONE}


def assert_same(found: dict, expected: dict, losses: dict = LOSSES, weights: dict = WEIGHTS) -> None:
    assert len(found["history"]) == len(expected["history"]) == STEPS
    for step, (a, b) in enumerate(zip(found["history"], expected["history"], strict=True)):
        assert a.keys() == b.keys(), f"step {step}: one run logs {sorted(a.keys() ^ b.keys())}"
        for name in a:
            assert a[name] == pytest.approx(b[name], rel=losses["rtol"]), f"step {step}: {name}"
    assert found["weights"].keys() == expected["weights"].keys()
    for name, weight in expected["weights"].items():
        torch.testing.assert_close(found["weights"][name], weight, **weights, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in [*FSDP2, *DDP] if "bf16" not in name])
def test_two_processes_train_the_same_model_as_one(trained, alone, name):
    """No labels at all, no actions at all, only one rank with labels, only one with actions: all in these steps."""
    same = name.partition("-")[2]
    assert_same(torch.load(trained / f"{name}.pt"), alone[same if same in ALONE else "paligemma-evaluated"])


def test_the_reference_would_notice_a_gradient_of_zero_for_none(alone):
    """In steps without labels the VLM stays where it is: it neither decays nor moves on by momentum."""
    history = alone["paligemma-evaluated"]["history"]
    assert [step for step, entry in enumerate(history) if "token_loss" not in entry] == [3, 15, 16]
    assert [step for step, entry in enumerate(history) if "flow_loss" not in entry] == [6, 18]
    assert all(("backbone_grad_norm" in entry) == ("token_loss" in entry) for entry in history)
    assert all(("expert_grad_norm" in entry) == ("flow_loss" in entry) for entry in history)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "family"),
    [*(("fsdp2", name) for name in SHARDED_FAMILIES), *(("ddp", name) for name in COPIED_FAMILIES)],
)
def test_any_vlm_learns_on_two_devices(trained, how, family):
    """Losses and gradients of two ranks with an example each are those of one process with both."""
    if family not in FAMILIES:
        pytest.skip("not in this transformers")
    losses, found, expected = torch.load(trained / "families.pt")[how][family]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert_gradients_close(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "fsdp2"])
def test_evaluation_where_one_rank_acts_and_another_answers(trained, alone, how):
    found, expected = torch.load(trained / f"{how}-paligemma-evaluated.pt")["metrics"], alone["paligemma-evaluated"]
    speed = ("_runtime", "_per_second")
    assert {"before_text_nll", "eval_text_nll"} < expected["metrics"].keys(), "texts are predicted by all ranks"
    for name, value in expected["metrics"].items():
        if not name.endswith(speed):
            assert found[name] == pytest.approx(value, rel=1e-4), name


@pytest.mark.slow
def test_a_sharded_run_leaves_an_ordinary_policy(trained):
    folder, weights = trained / "fsdp2-paligemma-resumed", torch.load(trained / "fsdp2-paligemma-resumed.pt")["weights"]
    model = KIVLAForActionPrediction.from_pretrained(folder)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, weights[name]), name
    assert KIVLAProcessor.from_pretrained(folder).chunk_size == model.config.chunk_size
    # with its own code, and in one file that has each tied weight once
    assert model.config.to_dict()["auto_map"]["AutoModelForImageTextToText"].startswith("modeling_kivla.")
    assert (folder / "modeling_kivla.py").is_file() and not list(folder.glob("_fsdp*"))
    assert weights.keys() - load_file(folder / "model.safetensors").keys() == {"vlm.lm_head.weight"}


@pytest.mark.slow
def test_sharded_mixed_precision_keeps_float32_weights(trained, alone):
    found, expected = torch.load(trained / "fsdp2-paligemma-bf16.pt"), alone["paligemma-evaluated"]
    for name, weight in found["weights"].items():
        assert weight.dtype == torch.float32, name
        assert not weight.ndim > 1 or not torch.equal(weight, weight.bfloat16().float()), f"{name} is rounded to bf16"
    differences = [abs(a["loss"] / b["loss"] - 1) for a, b in zip(found["history"], expected["history"], strict=True)]
    assert 1e-6 < max(differences) < 0.05, differences


@pytest.mark.slow
@pytest.mark.skipif(not has_deepspeed, reason="DeepSpeed is not installed")
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_trains_the_same_model(tmp_path, stage):
    """DeepSpeed gives an optimiser zeros for what has no gradient: both parts learn something in every step here."""
    names = [f"zero{stage}-paligemma-both", f"zero{stage}-paligemma-both-accumulated"]
    for name in names:  # in processes of their own: DeepSpeed's settings outlive a run
        launch(f"zero{stage}.yaml", tmp_path, [name], DS_ACCELERATOR="cpu")
    run(tmp_path, "alone-paligemma-both")
    expected = torch.load(tmp_path / "alone-paligemma-both.pt")
    for entry in expected["history"]:
        del entry["backbone_grad_norm"], entry["expert_grad_norm"]  # DeepSpeed keeps gradients to itself
    for name in names:
        assert_same(torch.load(tmp_path / f"{name}.pt"), expected)


# -------------------------------------------------------------------------------------------------------- the model
@pytest.mark.parametrize("name", ["paligemma", "smolvlm", "qwen3_vl", "gemma4", "lfm2_vl"])
def test_layers_are_named_for_sharding(name):
    """The names are of classes that the model has, and every layer of decoder, vision tower and expert is in one."""
    config = KIVLAConfig(vlm_config=FAMILIES[name].config(), expert_config={"hidden_size": 16, "intermediate_size": 16})
    model = KIVLAForActionPrediction(config)
    classes = {type(module).__name__ for module in model.modules()}
    assert set(model._no_split_modules) <= classes, "accelerate refuses names that it does not find"
    covered = [m for m in model.modules() if type(m).__name__ in model._no_split_modules]
    for parent in (model.get_decoder(), model.expert):
        assert all(layer in covered for layer in parent.layers)
    inside = {p for module in covered for p in module.parameters()}
    vision = [p for n, p in model.named_parameters() if "vis" in n and (".layers." in n or ".blocks." in n)]
    assert vision and all(p in inside for p in vision)


# --------------------------------------------------------------------------------------------------------- messages
def test_sharding_needs_images_on_all_devices_or_none(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, "paligemma")
    trainer.is_fsdp_enabled = True
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", 2)
    trainer._check_images([2, 0])
    with pytest.raises(ValueError, match="In step 1 some of the 2 devices have a batch without any image"):
        trainer._check_images([2, 1])
    # A batch of clips of one frame and of several has images and videos; its neighbour may have videos alone.
    batch = next(iter(trainer.get_train_dataloader()))
    beside = {**batch, "pixel_values_videos": batch["pixel_values"]}
    monkeypatch.setattr(trainer.accelerator, "reduce", lambda counts, reduction: counts + counts_beside)
    counts_beside = torch.tensor([[10, 10, 0, 0, 0, 1, 1]])
    trainer._get_num_items_in_batch([beside], torch.device("cpu"))
    with pytest.raises(ValueError, match="or without any video"):
        trainer._get_num_items_in_batch([batch], torch.device("cpu"))


def test_what_cannot_be_sharded_is_refused(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, "paligemma", muon=True)
    trainer._check_devices()
    trainer.is_fsdp_enabled = True
    with pytest.raises(ValueError, match="Muon needs whole matrices"):
        trainer._check_devices()
    lora = LoraConfig(target_modules=["q_proj"])
    trainer.model = get_peft_model(trainer.model, lora)
    with pytest.raises(ValueError, match="FSDP cannot share out the weights that LoRA wraps"):
        trainer._check_devices()
    monkeypatch.setattr(type(trainer), "is_zero3", True)
    with pytest.raises(ValueError, match="Give sample_in_eval=False"):
        trainer._check_devices()
    monkeypatch.setattr(type(trainer.accelerator), "distributed_type", DistributedType.FSDP)
    monkeypatch.setattr(type(trainer.accelerator), "is_fsdp2", False)
    with pytest.raises(ValueError, match="Set fsdp_version: 2"):
        trainer._check_devices()


# ------------------------------------------------------------------------------------------------------ launch files
def parsed(config: str, *arguments: str):
    """As `accelerate launch` reads the file."""
    command = ["--config_file", str(LAUNCH_FILES / config), *arguments, "script.py"]
    return _validate_launch_command(launch_command_parser().parse_args(command))[0]


@pytest.mark.parametrize(
    ("config", "kind"), [("ddp", "MULTI_GPU"), ("fsdp2", "FSDP"), ("zero2", "DEEPSPEED"), ("zero3", "DEEPSPEED")]
)
def test_launch_files_are_accelerates(config, kind):
    file = load_config_from_file(str(LAUNCH_FILES / f"{config}.yaml"))
    assert file.distributed_type == kind and file.mixed_precision == "bf16" and file.num_machines == 1
    text = (LAUNCH_FILES / f"{config}.yaml").read_text()
    assert text.startswith("#"), "begins with when to choose it"


def test_fsdp2_file_gives_its_plugin(monkeypatch):
    for name, value in prepare_multi_gpu_env(parsed("fsdp2.yaml")).items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert plugin.state_dict_type == StateDictType.FULL_STATE_DICT
    assert plugin.auto_wrap_policy is transformer_auto_wrap_policy and plugin.transformer_cls_names_to_wrap is None
    assert not plugin.cpu_ram_efficient_loading and not plugin.activation_checkpointing


@pytest.mark.parametrize("stage", [2, 3])
def test_zero_files_give_their_plugin(monkeypatch, stage):
    arguments = parsed(f"zero{stage}.yaml")
    fields = load_config_from_file(str(LAUNCH_FILES / f"zero{stage}.yaml")).deepspeed_config
    arguments.deepspeed_fields_from_accelerate_config = ",".join(fields)  # as `accelerate launch` does
    _, variables = prepare_deepspeed_cmd_env(arguments)
    assert variables["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == str(stage)
    assert variables["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] == "auto"
    assert variables["ACCELERATE_USE_DEEPSPEED"] == "true"
    if has_deepspeed:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        plugin = DeepSpeedPlugin()
        assert plugin.zero_stage == stage and not plugin.zero3_init_flag
        assert plugin.deepspeed_config["zero_optimization"]["stage"] == stage


def test_launch_files_are_written_once(tmp_path, capsys):
    (tmp_path / "ddp.yaml").write_text("mine")
    main(["launch-files", str(tmp_path)])
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in LAUNCH_FILES.iterdir()}
    assert (tmp_path / "ddp.yaml").read_text() == "mine" and "left as it is" in capsys.readouterr().out
    assert {"ddp.yaml", "fsdp2.yaml", "zero2.yaml", "zero3.yaml", "slurm.sh"} <= {f.name for f in tmp_path.iterdir()}


# ------------------------------------------------------------------------------------------------------------- SLURM
STUBS = {
    "scontrol": 'if [ "$1" = show ]; then echo first; echo second; else echo "$@" >> "$RECORD/scontrol"; fi',
    # the script's command on both "machines"; fails if one does
    "srun": """
shift  # --kill-on-bad-exit
for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@" & done
status=0
for job in $(jobs -p); do wait "$job" || status=$?; done
exit $status""",
    "scancel": 'echo "$@" >> "$RECORD/scancel"; for file in "$RECORD"/pid_*; do kill -USR1 "$(cat "$file")"; done',
    # a launcher, and a training that ends with 138 after SIGUSR1
    "accelerate": """
echo "$@" > "$RECORD/accelerate_$SLURM_NODEID"
echo $$ > "$RECORD/pid_launcher_$SLURM_NODEID"
"$PYTHON" -c "
import os, pathlib, signal, sys, time
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(138))
pathlib.Path(os.environ['RECORD'], 'pid_training_' + os.environ['SLURM_NODEID']).write_text(str(os.getpid()))
deadline = time.monotonic() + float(os.environ['SECONDS_TO_TRAIN'])
while time.monotonic() < deadline:
    time.sleep(0.05)
sys.exit(int(os.environ['TRAINING_ENDS_WITH']))
" || exit 1""",
}


def start_slurm_job(folder: Path, seconds: float, status: int = 0) -> subprocess.Popen:
    (folder / "bin").mkdir()
    for name, body in STUBS.items():
        stub = folder / "bin" / name
        stub.write_text(f"#!/bin/bash\n{body}\n")
        stub.chmod(0o755)
    variables = {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "RECORD": str(folder),
        "PYTHON": sys.executable,
        "SECONDS_TO_TRAIN": str(seconds),
        "TRAINING_ENDS_WITH": str(status),
        "SLURM_JOB_ID": "20007",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_GPUS_ON_NODE": "4",
    }
    command = ["bash", str(LAUNCH_FILES / "slurm.sh"), "fsdp2.yaml", "--vlm", "a b", "--bf16"]
    return subprocess.Popen(command, env=environment(**variables), cwd=folder)


def test_slurm_starts_every_machine(tmp_path):
    subprocess.run(["bash", "-n", str(LAUNCH_FILES / "slurm.sh")], check=True)
    assert start_slurm_job(tmp_path, seconds=0).wait(timeout=PATIENCE) == 0
    for rank in (0, 1):
        assert (tmp_path / f"accelerate_{rank}").read_text().split() == [
            *("launch", "--config_file", "fsdp2.yaml", "--num_machines", "2", "--num_processes", "8"),
            *("--main_process_ip", "first", "--main_process_port", "20007", "--machine_rank", str(rank)),
            *("-m", "kivla.cli", "train", "--vlm", "a", "b", "--bf16"),
        ]
    assert not (tmp_path / "scontrol").exists(), "a job that is done goes back into no queue"


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_slurm_job_stops_with_a_checkpoint_and_goes_back_into_the_queue(tmp_path, number):
    job = start_slurm_job(tmp_path, seconds=PATIENCE)
    deadline = time.monotonic() + PATIENCE
    while not all((tmp_path / f"pid_training_{rank}").is_file() for rank in (0, 1)):
        assert time.monotonic() < deadline and job.poll() is None
        time.sleep(0.05)
    job.send_signal(number)
    assert job.wait(timeout=PATIENCE) != 0
    assert (tmp_path / "scancel").read_text() == "--signal=USR1 20007\n"
    assert (tmp_path / "scontrol").read_text() == "requeue 20007\n"


def test_slurm_job_that_fails_is_not_queued_again(tmp_path):
    assert start_slurm_job(tmp_path, seconds=0, status=3).wait(timeout=PATIENCE) == 1
    assert not (tmp_path / "scontrol").exists()
