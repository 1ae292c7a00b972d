"""The options of `kivla train`: defaults of a first run, presets, the plan, --help, and the YAML that repeats a run."""

import os
import re
import shutil
import signal
import warnings
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import constants
from transformers import TrainerCallback, TrainingArguments

from kivla import KIVLATrainingArguments
from kivla.cli import main
from kivla.command_line import parse
from kivla.commands.train import OPTIONS, RUN_YAML, SETTINGS, effective_options
from kivla.training.parts import freeze_vision
from kivla.training.plan import TimeLeft, moments_of, plan, time_left
from kivla.training.recipes import RECIPES, WARM_UP, get_recipe
from kivla.training.run_arguments import PRESETS, SOURCES, RunArguments, advanced_options, preset_for
from kivla.training.trainer import KIVLATrainer
from tests.commands.test_commands import TINY
from tests.helpers.policies import DATASET, make_policy, make_trainer

DOCS = Path(__file__).parents[2] / "docs" / "training_arguments.md"
GIVEN = ["--vlm", "x", "--dataset", "y", "--output_dir", "z", "--use_cpu", "true"]


def read(*words) -> RunArguments:
    return parse(OPTIONS, [*GIVEN, *words], **SETTINGS)[2]


# --------------------------------------------------------------------------------------------------------- defaults
def test_every_default_has_a_source_and_is_in_the_docs():
    ours, plain = (
        {field.name: field.default for field in fields(kind)} for kind in (RunArguments, KIVLATrainingArguments)
    )
    changed = {name for name in ours if name == "preset" or ours[name] != plain[name]}
    assert changed - {"preset", "num_train_epochs"} <= set(SOURCES)
    page = DOCS.read_text(encoding="utf-8")
    for name, source in SOURCES.items():
        assert f"| `{name}` | {source} |" in page, f"docs/training_arguments.md lacks the default of {name}"


def test_what_python_trains_with_stays_the_librarys():
    """`kivla demo` and `kivla study` go by these, and so do their figures."""
    ours, library = (
        {field.name: field.default for field in fields(kind)} for kind in (KIVLATrainingArguments, TrainingArguments)
    )
    for name in SOURCES.keys() & library.keys() - {"adam_beta2"}:
        assert ours[name] == library[name], name
    assert KIVLATrainingArguments("z", use_cpu=True).adam_beta2 == 0.999 and ours["augment"] == "none"


def test_the_defaults_are_those_of_openpi():
    args = read()
    assert (args.max_steps, args.learning_rate, args.adam_beta2) == (30_000, 2.5e-5, 0.95)
    assert args.get_warmup_steps(30_000) == 1000 and args.lr_scheduler_kwargs == {"min_lr_rate": 0.1}
    assert (args.save_steps, args.save_total_limit, args.eval_steps) == (1000, 2, 1000)
    assert args.dataloader_num_workers == min(4, os.cpu_count()) and args.augment == "robot"
    assert read("--num_train_epochs", "2").max_steps == -1
    assert read("--muon", "true").adam_beta2 == 0.99
    cosine = read("--lr_scheduler_type", "cosine")
    assert not cosine.lr_scheduler_kwargs, "a plain cosine knows no smallest rate"


def test_a_new_expert_learns_faster_and_nothing_else_is_touched():
    stages = RECIPES["insulated"].stages
    assert read().for_stages(stages, True).expert_learning_rate == 1e-4
    assert read("--learning_rate", "1e-3").for_stages(stages, True).expert_learning_rate == 1e-3
    assert read("--expert_learning_rate", "3e-5").for_stages(stages, True).expert_learning_rate == 3e-5
    assert read().for_stages(stages, False).expert_learning_rate is None, "it was trained already"
    assert read().for_stages(get_recipe("pi0-fast").stages, True).expert_learning_rate is None, "there is none"
    assert read("--muon", "true").for_stages(stages, True).expert_learning_rate is None
    own = (replace(WARM_UP, learning_rates={"expert": 2e-4}), *stages)
    assert read().for_stages(own, True).expert_learning_rate is None, "the recipe has its own"


def test_a_preset_counts_less_than_the_file_and_the_file_less_than_the_command(tmp_path):
    large = read("--preset", "large", "--learning_rate", "1e-5")
    assert large.gradient_accumulation_steps == PRESETS["large"]["gradient_accumulation_steps"]
    assert large.bf16 and large.learning_rate == 1e-5
    (tmp_path / "run.yaml").write_text("preset: small\nper_device_train_batch_size: 5\nvlm: x\ndataset: y\n")
    file = [str(tmp_path / "run.yaml"), "--output_dir", "z", "--use_cpu", "true"]
    args = parse(OPTIONS, file, **SETTINGS)[2]
    assert (args.per_device_train_batch_size, args.learning_rate, args.bf16) == (5, 1e-4, True)
    assert parse(OPTIONS, [*file, "--preset", "large"], **SETTINGS)[0].lora_rank == 32
    assert [preset_for(size) for size in (0.5e9, 3e9, 7e9)] == ["small", "medium", "large"]
    with pytest.raises(SystemExit, match=r"there is no preset huge. Presets: small, medium, large"):
        read("--preset", "huge")
    for name, values in PRESETS.items():
        assert values["per_device_train_batch_size"] * values.get("gradient_accumulation_steps", 1) == 32, name


def test_a_preset_without_a_gpu_is_refused_in_our_words(monkeypatch):
    monkeypatch.setattr("kivla.training.run_arguments.is_torch_bf16_gpu_available", lambda: False)
    on_a_cpu = GIVEN[: GIVEN.index("--use_cpu")]
    for words, said in (
        (
            ["--preset", "medium"],
            "--preset medium has --bf16, which needs a GPU, and there is none here. Add --bf16 fa",
        ),
        (["--bf16"], "kivla train: --bf16 needs a GPU"),
    ):
        with pytest.raises(SystemExit, match=said):
            parse(OPTIONS, [*on_a_cpu, *words], **SETTINGS)
    assert not parse(OPTIONS, [*on_a_cpu, "--preset", "medium", "--bf16", "false"], **SETTINGS)[2].bf16


def test_our_defaults_and_presets_bring_no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        args = read("--preset", "medium")
    assert args.gradient_checkpointing and not read().gradient_checkpointing
    assert args.dataloader_pin_memory == torch.accelerator.is_available()


# ------------------------------------------------------------------------------------------------------------- help
def test_help_shows_ours_and_help_all_the_librarys_behind_them(capsys):
    shown = {}
    for option in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as done:
            main(["train", option])
        assert done.value.code == 0
        shown[option] = capsys.readouterr().out
    hidden = advanced_options()
    assert {"optim", "fsdp", "jit_mode_eval"} & hidden and not {"output_dir", "augment", "max_steps"} & hidden
    known = {field.name for kind in OPTIONS for field in fields(kind)}
    listed = {option: set(re.findall(r"^  --(\w+)", text, re.M)) for option, text in shown.items()}
    assert listed["--help"] & known == known - hidden
    assert listed["--help-all"] & known == known
    assert "(default: None)" not in shown["--help-all"] and "--max-steps" not in shown["--help"]
    groups = [
        shown["--help-all"].index(f"\n{title}") for title in ("what to start from", "data:", "training:", "of tr")
    ]
    assert groups == sorted(groups)
    assert len(hidden) > 80 and hidden <= {field.name for field in fields(TrainingArguments)}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--max_step", "3"], "kivla train: there is no option --max_step. Did you mean --max_steps?"),
        (["--max_steps", "many"], "kivla train: argument --max_steps/--max-steps: invalid"),
        (["--vlm"], "kivla train: argument --vlm: expected one argument"),
        (["--vlm", "x"], "kivla train: the following arguments are required: --dataset"),
        (["--vlm", "x", "--dataset", "y", "--output_dir", "z", "--augment", "strong"], "augment is one of none, robot"),
        ([*GIVEN, "--max_steps", "-3"], "--max_steps must be at least 1, got -3."),
        ([*GIVEN, "--max_steps", "0"], "--max_steps must be at least 1, got 0."),
        ([*GIVEN, "--num_train_epochs", "-1"], "--num_train_epochs must be more than 0, got -1."),
        ([*GIVEN, "--recipe", "insulatd"], "There is no recipe 'insulatd'. Did you mean insulated? Recipes: "),
        (
            ["--vlm", "tabletp", *GIVEN[2:]],
            "'tabletp' is neither a folder here nor a VLM (--vlm). Did you mean tabletop?",
        ),
    ],
)
def test_a_wrong_option_is_one_line(words, said, capsys, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # or a name is asked for at the Hub, again and again
    with pytest.raises(SystemExit) as refusal:
        main(["train", *words])
    lines = capsys.readouterr().err.splitlines()
    assert refusal.value.code == 2 and len(lines) == 1 and said in lines[0]


def test_a_wrong_key_in_a_file_is_answered_with_the_nearest(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("lerning_rate: 1\n")
    (tmp_path / "list.yaml").write_text("- a\n")
    for file, said in (
        ("run", "unknown keys: lerning_rate. Did you mean learning_rate?"),
        ("list", "of the form `opt"),
    ):
        with pytest.raises(SystemExit):
            main(["train", str(tmp_path / f"{file}.yaml")])
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("max_steps: 2.7", "argument --max_steps"),
        ("learning_rate: null", "gives learning_rate no value"),
        ("adam_beta2: 1.0", "--adam_beta2 must be at least 0, and less than 1; got 1.0"),
        ("save_total_limit: 0", "--save_total_limit must be at least 1; got 0"),
        ("logging_steps: -1", "--logging_steps must be more than 0, got -1"),
        ("dataset_weights: 0", "--dataset_weights are numbers above 0"),
        ("chunk_size: 6.0", "argument --chunk_size"),
        ("learning_rate: [1.0e-4, 2.0e-4]", "there is no place for 0.0002"),
        ("max_steps: 2\nmax_steps: 3", "max_steps is there more than once"),
        ("dtype: float31", "--dtype is float32, bfloat16, float16 or auto"),
        ("max_steps: 2\nnum_train_epochs: 3", "--num_train_epochs cannot apply: --max_steps 2 says how long"),
    ],
)
def test_a_value_of_the_wrong_kind_in_a_file_is_one_line(line, said, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(f"vlm: {tmp_path}\ndataset: y\noutput_dir: z\nuse_cpu: true\n{line}\n")
    with pytest.raises(SystemExit):
        main(["train", str(tmp_path / "run.yaml")])
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 1 and said in printed[0]


def test_one_value_in_a_file_is_a_list_of_one_and_a_mapping_one_of_pairs(tmp_path):
    (tmp_path / "run.yaml").write_text(
        "vlm: tabletop\ndataset: y\noutput_dir: z\nuse_cpu: true\nepisodes: 1\nrobots: arm\n"
        "cameras: {front: top}\nsave_total_limit: null\nreport_to: []\neval_strategy: no\n"
    )
    _, data_args, args = parse(OPTIONS, [str(tmp_path / "run.yaml")], **SETTINGS)
    assert (data_args.episodes, data_args.robots, data_args.mapping) == ([1], ["arm"], {"front": "top"})
    assert args.save_total_limit is None and args.report_to == [] and args.use_cpu
    assert args.eval_strategy.value == "no", "which YAML takes for a switch"


def test_a_folder_that_holds_what_the_run_begins_with_is_refused(vlm, tmp_path, capsys):
    """`--restart` would move it away, and then not find it."""
    shutil.copytree(vlm, tmp_path / "run" / "stage_1")
    before = sorted(tmp_path.rglob("*"))
    for folder, verb in ((tmp_path / "run" / "stage_1", "is"), (tmp_path / "run", "holds")):
        with pytest.raises(SystemExit):
            main([*command(tmp_path / "run" / "stage_1", folder), "--restart"])
        assert f"--output_dir {folder} {verb} what the run begins with, --vlm" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_what_a_run_is_reported_to_must_be_installed(monkeypatch):
    monkeypatch.setattr("kivla.training.run.get_available_reporting_integrations", lambda: ["tensorboard"])
    for name, said in (
        ("trackio", "is not installed here: pip install trackio"),
        ("wandbb", "or no such thing: track"),
    ):
        with pytest.raises(SystemExit, match=f"--report_to {name} is.*{said.removeprefix('is ')}"):
            main(["train", *GIVEN, "--report_to", name])


# ---------------------------------------------------------------------------------------------------- plan and YAML
def command(vlm, folder, **options) -> list[str]:
    settings = {**TINY, "vlm": vlm, "dataset": DATASET, "output_dir": folder, "max_steps": 2, **options}
    return ["train", *(str(word) for name, value in settings.items() for word in (f"--{name}", value))]


def test_the_plan_is_printed_and_the_options_repeat_the_run(vlm, tmp_path, capsys):
    main(command(vlm, tmp_path / "first", eval_episodes=1, freeze_vision="true", augment="robot", hub_token="secret"))
    printed = capsys.readouterr().out
    for line in (
        r"trained +VLM [\d.]+k of [\d.]+k; projector [\d.]+k; expert [\d.]+k",
        r"rates +2.5e-05, expert 0.0001; 0 steps of warm-up, then a cosine that ends at 10%",
        r"steps +2 of 4 examples; the demonstrations have \d+ frames, \d+ steps an epoch, 0.\d+ epochs",
        r"augmentation +robot: brightness",
        r"evaluation +at the end on train \(16\), held_out \(16\)",
        r"checkpoints +at the end, the last 2 kept; [\d.]+ MB each",
        r"preset +none; for a VLM of [\d.]+k parameters there is --preset small",
    ):
        assert re.search(f"^{line}", printed, re.M), f"{line}\n{printed}"
    each, most = map(float, re.search(r"kept; ([\d.]+) MB each, at most ([\d.]+) MB", printed).groups())
    assert most > each, "the checkpoint of the last step, and the policy"

    text = (tmp_path / "first" / RUN_YAML).read_text()
    assert "secret" not in text and yaml.safe_load(text)["expert_learning_rate"] == 1e-4
    main(["train", str(tmp_path / "first" / RUN_YAML), "--output_dir", str(tmp_path / "second")])
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second")]
    assert weights[0] == weights[1], "the same run, from its file"
    other = yaml.safe_load((tmp_path / "second" / RUN_YAML).read_text())
    assert other == {**yaml.safe_load(text), "output_dir": str(tmp_path / "second")}


@pytest.mark.parametrize("words", [[], ["--preset", "large"], ["--num_train_epochs", "2", "--cameras", "a=b", "c"]])
def test_effective_options_are_read_back_as_they_were(words, tmp_path):
    given = [*GIVEN, *words]
    before = parse(OPTIONS, given, **SETTINGS)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(effective_options(given, before[2])))
    after = parse(OPTIONS, [str(tmp_path / "run.yaml")], **SETTINGS)
    for one, other in zip(before, after, strict=True):
        assert asdict(one) == asdict(other)


def test_a_frozen_vision_tower_stays_and_the_projector_learns(tmp_path):
    model, processor = make_policy(tmp_path / "vlm")
    freeze_vision(model)
    trainer = make_trainer(tmp_path, model, processor, max_steps=1)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    trainer.train()
    moved = {name for name, weight in model.named_parameters() if not weight.equal(before[name])}
    assert not [name for name in moved if "vision_tower" in name]
    assert [name for name in moved if "projector" in name] and [name for name in moved if "language_model" in name]
    with pytest.raises(SystemExit, match="--freeze_vision cannot apply: recipe frozen leaves the whole VLM as it is"):
        main(["train", *GIVEN, "--recipe", "frozen", "--freeze_vision", "true"])
    with pytest.raises(SystemExit, match="--freeze_vision cannot apply: LoRA trains the text decoder alone"):
        main(["train", *GIVEN, "--lora_rank", "4", "--freeze_vision", "true"])


@pytest.mark.parametrize(
    ("name", "value"), [("lora_rank", "0"), ("lora_rank", "-3"), ("seed", "-1"), ("seed", "4294967296")]
)
def test_a_number_that_cannot_be_is_refused_in_words(name, value):
    with pytest.raises(SystemExit, match=f"--{name} .*got {value}"):
        main(["train", *GIVEN, f"--{name}", value])


def test_a_switch_needs_no_word():
    assert read("--gradient_checkpointing").gradient_checkpointing is True
    assert read("--gradient_checkpointing", "false").gradient_checkpointing is False


@pytest.mark.parametrize(
    ("options", "moments"),
    [({}, 2), ({"optim": "adafactor"}, 0), ({"optim": "adamw_8bit"}, 0.5), ({"muon": True}, 1), ({"optim": "sgd"}, 0)],
)
def test_the_plan_has_what_the_optimiser_keeps(options, moments):
    assert moments_of(KIVLATrainingArguments("z", use_cpu=True, **options)) == moments


def test_the_plan_knows_that_a_batch_is_no_larger_than_the_data(tmp_path):
    trainer = make_trainer(tmp_path, per_device_train_batch_size=1000, max_steps=2)
    frames = len(trainer.train_dataset)
    told = dict(plan(trainer))
    assert (
        told["steps"] == f"2 of {frames} examples; the demonstrations have {frames} frames, 1 step an epoch, 2 epochs"
    )


def test_the_time_is_said_after_the_first_steps(tmp_path, capsys):
    times = [100.0 * (i < 5) * i + 2.0 * i for i in range(21)]  # the first five are slow
    assert "A step takes 2 s (median of steps 6 to 21): the other 9,000 take about 5 h 0 min" in time_left(times, 9000)
    trainer = make_trainer(tmp_path, max_steps=22)
    trainer.add_callback(TimeLeft())
    trainer.train()
    assert re.search(r"A step takes \S+ s .*: the other 1 take about \d+ s", capsys.readouterr().out)


class PressCtrlC(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 1:
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_writes_a_checkpoint_and_says_how_to_go_on(vlm, tmp_path, monkeypatch, caplog, capsys):
    begin = KIVLATrainer.__init__

    def begin_and_press(self, *args, **kwargs):
        begin(self, *args, **kwargs)
        self.add_callback(PressCtrlC())

    words = command(vlm, tmp_path, max_steps=3)
    with monkeypatch.context() as patch:
        patch.setattr(KIVLATrainer, "__init__", begin_and_press)
        with pytest.raises(SystemExit) as stop:
            main(words)
    assert stop.value.code == 130 and (tmp_path / "checkpoint-2").is_dir()
    assert "Ctrl-C again stops at once" in caplog.text and "start the same command again to go on" in caplog.text
    main(words)
    assert "with 1 of 3 steps to go" in caplog.text


def test_help_begins_with_what_is_needed_and_says_nothing_twice(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = capsys.readouterr().out
    options = re.findall(r"^  (--[\w-]+)", shown, re.M)
    for title, first in (("what to start from", "--vlm"), ("data:", "--dataset"), ("training:", "--output_dir")):
        assert re.search(r"--\w+", shown[shown.index(f"\n{title}") :])[0] == first
    assert len(options) == len(set(options)), "each once"
    assert "(default: None)" not in shown and "--chunk-size" not in shown and "--no_" not in shown
    assert "(default: 512)" in shown, "a default that there is"
    assert read("--no_clip_per_part").clip_per_part is False, "accepted all the same"
