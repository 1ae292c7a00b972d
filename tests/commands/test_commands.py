"""The `kivla` command, each sub-command from end to end on tiny models."""

import importlib
import json
import re
import sys

import numpy as np
import pytest
import torch
import transformers
import yaml
from huggingface_hub import constants
from PIL import Image

import kivla
from kivla import KIVLAForActionPrediction, KIVLAProcessor
from kivla.cli import COMMANDS, main
from tests.helpers.policies import DATASET

TINY = {
    "chunk_size": 6,
    "max_action_dim": 4,
    "expert_hidden_size": 32,
    "expert_intermediate_size": 48,
    "num_flow_samples": 2,
    "action_vocab_size": 128,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 16,
    "max_eval_frames": 16,
    "logging_steps": 1,
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "dataloader_num_workers": 0,
    "augment": "none",
    "warmup_steps": 0,  # or the first of a few steps would move nothing
}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """What is not here is not asked for again and again."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def policy(vlm, tmp_path_factory):
    """Trained by `kivla train` from a YAML file, with an option on top."""
    folder = tmp_path_factory.mktemp("train")
    settings = {**TINY, "vlm": str(vlm), "dataset": str(DATASET), "output_dir": str(folder / "run"), "max_steps": 99}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    main(["train", str(folder / "config.yaml"), "--max_steps", "3", "--eval_episodes", "1"])
    return folder / "run"


def test_train_from_yaml(policy):
    metrics = json.loads((policy / "eval_results.json").read_text())
    assert {"eval_train_action_mae", "eval_held_out_action_mae", "eval_held_out_times_better_than_mean"} <= set(metrics)
    state = json.loads((policy / "trainer_state.json").read_text())
    assert state["global_step"] == 3, "the command line overrides the file"
    assert Image.open(policy / "training.png").size[0] > 500
    model, processor = KIVLAForActionPrediction.from_pretrained(policy), KIVLAProcessor.from_pretrained(policy)
    assert model.config.chunk_size == processor.chunk_size == 6
    assert model.config.backbone_gradient_scale == 0.0


def test_train_goes_on_from_a_policy(policy, tmp_path):
    options = {**TINY, "policy": policy, "dataset": DATASET, "output_dir": tmp_path, "max_steps": 1}
    main(["train", *(str(word) for name, value in options.items() for word in (f"--{name}", value))])
    before, after = (KIVLAProcessor.from_pretrained(folder) for folder in (policy, tmp_path))
    assert before.to_dict() == after.to_dict(), "statistics and tokenizer stay those of the policy"


def test_train_resumes_by_the_same_command(vlm, tmp_path, capsys):
    options = {**TINY, "vlm": vlm, "dataset": DATASET, "output_dir": tmp_path, "save_steps": 2, "max_steps": 2}
    command = ["train", *(str(word) for name, value in options.items() for word in (f"--{name}", value))]
    main(command)
    main([*command, "--max_steps", "4"])
    history = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "token_loss" in entry] == [1, 2, 3, 4]


def test_predict_on_a_dataset(policy, tmp_path, capsys):
    main(["predict", str(policy), "--dataset", str(DATASET), "--num_frames", "6", "--output_dir", str(tmp_path)])
    report = json.loads((tmp_path / "predict.json").read_text())
    assert report["times_better_than_mean"] == pytest.approx(report["mean_action_mae"] / report["action_mae"])
    assert Image.open(tmp_path / "chunks.png").size[0] > 500
    assert "6 chunks: mean absolute error" in capsys.readouterr().out


def test_predict_on_an_image(policy, tmp_path, capsys):
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "a.png")
    main(["predict", str(policy), "--images", str(tmp_path / "a.png"), "--text", "go", "--state", *"0000"])
    printed = capsys.readouterr().out
    assert np.fromstring(printed.replace("[", " ").replace("]", " "), sep=" ").shape == (6 * 4,)


def test_inspect_a_vlm(vlm, tmp_path, capsys):
    main(["inspect", str(vlm), "--chunk_size", "6", "--output", str(tmp_path / "mask.png")])
    printed = capsys.readouterr().out
    assert "paligemma" in printed and "half, from value 0, rotary_emb.inv_freq" in printed
    assert "knowledge insulation" in printed
    assert "bytes a prompt token" in printed or "kB a prompt token" in printed
    assert "no expert keeps to 10% of the parameters and 15% of the step" in printed, "the VLM is smaller than any"
    assert Image.open(tmp_path / "mask.png").size[0] > 500


def test_inspect_suggests_an_expert_for_a_budget(vlm, tmp_path, capsys):
    budget = ["--max_parameter_share", "40", "--max_step_share", "90"]
    main(["inspect", str(vlm), "--chunk_size", "6", *budget, "--output", str(tmp_path / "mask.png")])
    assert "suggested      --expert_hidden_size " in capsys.readouterr().out


def test_inspect_shows_what_a_history_costs(vlm, policy, tmp_path, capsys):
    prompts = []
    for history in ("1", "3"):
        main(["inspect", str(vlm), "--chunk_size", "6", "--history", history, "--output", str(tmp_path / "mask.png")])
        printed = capsys.readouterr().out
        prompts.append(int(re.search(r"prompt +(\d+) tokens", printed)[1]))
    assert "sees       3 frames, 1 control step apart" in printed
    assert prompts[1] - prompts[0] == 2 * 4  # two more images, of 2 x 2 patches
    with pytest.raises(SystemExit, match="--history is for a VLM; this policy sees the present frame alone"):
        main(["inspect", str(policy), "--history", "2"])


def test_inspect_a_policy_shows_its_mask(policy, tmp_path, capsys):
    from kivla.commands.inspect import attention_mask, example_batch

    main(["inspect", str(policy), "--output", str(tmp_path / "mask.png")])
    assert "128 codes" in capsys.readouterr().out
    processor = KIVLAProcessor.from_pretrained(policy)
    config = KIVLAForActionPrediction.from_pretrained(policy).config
    image_ids = processor.tokenizer.convert_tokens_to_ids(["<image>"])
    mask, groups = attention_mask(config, example_batch(processor, 1, "go"), image_ids)
    names = [name for name, _ in groups]
    assert names == ["image", "text", "learned", "noisy actions"]
    start = dict(zip(names, np.cumsum([0, *(n for _, n in groups)]), strict=False))
    prompt, learned, noisy = (
        slice(0, start["learned"]),
        slice(start["learned"], start["noisy actions"]),
        slice(-6, None),
    )
    assert (mask[prompt, prompt] == 1).all(), "PaliGemma's prompt is bidirectional"
    assert (mask[prompt, learned] == 0).all() and (mask[learned, prompt] == 1).all()
    assert (mask[learned, learned] == np.tril(np.ones_like(mask[learned, learned]))).all()
    assert (mask[noisy, prompt] == 2).all(), "the expert sees the prompt, with the gradient stopped"
    assert (mask[noisy, learned] == 0).all() and (mask[noisy, noisy] == 1).all()
    assert (mask[:-6, noisy] == 0).all(), "the VLM does not see the expert's tokens"


def test_help_and_unknown_commands(capsys):
    main([])
    printed = capsys.readouterr().out
    assert all(command in printed for command in COMMANDS)
    main(["--version"])
    versions = capsys.readouterr().out
    assert all(f"{package.__name__} {package.__version__}" in versions for package in (kivla, torch, transformers))
    for command, said in (("fly", "there is no command 'fly'. Commands: demo"), ("tran", "Did you mean train?")):
        with pytest.raises(SystemExit) as refusal:
            main([command])
        assert said in capsys.readouterr().err and refusal.value.code == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict", "p", "--dataset", "d", "--text", "go"], "--text cannot apply: --dataset has its own"),
        (["predict", "p", "--images", "a.png", "--episodes", "1"], "--episodes cannot apply: there is no --dataset"),
        (["predict", "p", "--images", "a.png", "--output_dir", "o"], "--output_dir cannot apply: there is no"),
        (["study", "--recipe", "joint"], "--recipe cannot apply: it is what a study compares"),
    ],
)
def test_options_that_cannot_apply_are_named(words, message):
    with pytest.raises(SystemExit, match=message):
        main(words)


def test_unknown_key_in_yaml(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("datset: x\n")
    with pytest.raises(SystemExit):
        main(["train", str(tmp_path / "config.yaml")])
    assert "unknown keys: datset" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["evaluate", "--dataset", "d"], ["predict", "--dataset", "d"], ["rollout"], ["serve"]]
)
def test_what_is_no_policy_is_named_before_anything_is_done(words, vlm, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, said in (
        ("no_such_folder", "neither a folder here nor"),
        (str(vlm), "is no KIVLA policy: its config.json"),
        ("tabletop", "tabletop is no KIVLA policy: its config.json"),
    ):
        with pytest.raises(SystemExit) as refusal:
            main([words[0], name, *words[1:]])
        assert said in capsys.readouterr().err and refusal.value.code == 2


def test_a_policy_is_no_vlm(policy):
    with pytest.raises(ValueError, match="is a KIVLA policy, not a VLM"):
        KIVLAProcessor.from_vlm(policy)


def test_a_missing_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "msgpack", None)
    for module in [name for name in sys.modules if name.startswith(("kivla.serving", "kivla.commands.serve"))]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(SystemExit) as refusal:
        main(["serve", "--help"])
    assert "pip install 'kivla[server]'" in capsys.readouterr().err and refusal.value.code == 2


def test_vlm_or_policy(tmp_path):
    two_stages = ["--vlm", "x", "--dataset", "y", "--output_dir", "z", "--recipe", "pi0.5", "--max_steps", "9"]
    with pytest.raises(SystemExit, match="kivla train: --resume_from_checkpoint cannot apply: a run of 2 stages"):
        main(["train", *two_stages, "--resume_from_checkpoint", "z/checkpoint-1"])
    with pytest.raises(SystemExit, match=r"either --vlm .* or --policy"):
        main(["train", "--dataset", str(DATASET), "--output_dir", str(tmp_path)])


def test_profile_says_where_a_step_goes(vlm, tmp_path, capsys):
    settings = {**TINY, "vlm": str(vlm), "dataset": str(DATASET), "output_dir": str(tmp_path), "warmup_steps_before": 1}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    main(["profile", str(tmp_path / "config.yaml"), "--profile_steps", "2"])
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split("  ")[0] or line.strip().split("  ")[0]: line.split() for line in lines if line.endswith("%")}
    times = {name: float(words[-4]) for name, words in rows.items()}
    assert all(time > 0 for time in times.values()), times
    assert times["backbone"] + times["action expert"] <= times["forward"] * 1.01
    assert times["forward"] + times["backward"] == pytest.approx(times["forward and backward"], abs=0.02)
    parts = times["reading and preparing the batch"] + times["forward and backward"] + times["optimizer"]
    assert parts == pytest.approx(times["all"], abs=0.03)
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert not list(tmp_path.glob("checkpoint-*")), "profiling leaves no policy behind"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluate", "policy", "--dataset", "data", "--episodez", "1"], "no option --episodez. Did you mean --episo"),
        (
            ["train", "--datset", "data"],
            "no option --datset. Did you mean --dataset?",
        ),  # which is required, and missing
        (["train", "--max_step", "3"], "there is no option --max_step. Did you mean --max_steps?"),  # no abbreviation
        (["evaluate", "policy", "other", "--dataset", "data"], "there is no place for other"),
        (["predict", "policy", "--import", "no_such_module"], "--import no_such_module: there is no such module here"),
    ],
)
def test_what_is_misspelt_or_too_much_is_named(words, said, capsys):
    with pytest.raises(SystemExit) as refusal:
        main(words)
    assert said in capsys.readouterr().err and refusal.value.code == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "nothing.yaml"], "there is no file nothing.yaml"),
        (
            ["train", "--vlm", "./nothing", "--dataset", str(DATASET), "--output_dir", "new"],
            "There is no folder ./nothing, hence no VLM (--vlm)",
        ),
        (["train", "--policy", "./no", "--dataset", str(DATASET), "--output_dir", "new"], "There is no folder ./no, "),
        (
            ["train", "--vlm", "tabletop", "--dataset", "./nothing", "--output_dir", "new"],
            "There is no folder ./nothing.",
        ),
        (["train", str(DATASET)], f"there is no place for {DATASET}"),
        (["train", "--vlm", "x", "--dataset", "d", "--output_dir", "new", "--learning_rate", "-1"], "must not be neg"),
        (["check-data", str(DATASET), "--plot", "x.xyz"], "--plot x.xyz: pictures end in ."),
        (["check-data", str(DATASET), "--json", str(DATASET)], "is a folder. Name a file"),
        (["serve", "policy", "--port", "99999"], "--port must be from 0"),
        (["inspect", "no/such"], "'no/such' is neither a folder here nor a policy or VLM that can be had from"),
        (["inspect", str(DATASET)], "is a folder without config.json"),
        (["record", "new", "--env", "tabeltop"], "Unknown environment 'tabeltop'"),
        (["record", "new", "--env", "nothing:Here"], "there is no module 'nothing' here"),
        (["record", "new", "--env_options", "kinds=[tuoch]", "--num_episodes", "1"], "tuoch"),
        (["record", "new", "--env_options", "kind=[touch]"], "there is no option kind. It has: kinds, "),
        (
            ["record", "new", "--env_options", "expert_precision=nan"],
            "expert_precision of the environment must be a number",
        ),
        (
            ["record", "new", "--env_options", "max_steps=9.5"],
            "max_steps of the environment must be a whole number, got 9",
        ),
        (
            ["record", "new", "--num_episodes", "2", "--action_noise", "50", "50", "0", "--env_options", "kinds=[put]"],
            "no dataset was written. Disturb it less (action_noise)",
        ),
        (["record", "new", "--num_episodes", "0"], "--num_episodes must be at least 1, got 0"),
        (["record", str(DATASET), "--num_episodes", "1"], "exists and is not an empty folder"),
        (["record", "new", "--num_episodes", "1", "--action_noise", "0.6"], "action_noise needs one standard dev"),
    ],
)
def test_a_mistake_is_answered_in_words_without_a_traceback(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as refusal:
        main(words)
    assert said in str(capsys.readouterr().err) and refusal.value.code == 2
    assert not list(tmp_path.iterdir()), "nothing is written"


@pytest.mark.parametrize(
    ("line", "module", "is_refusal"),
    [
        ("raise ValueError('Give more.')", "kivla.training.run", True),
        ("int('x')", "kivla.training.run", False),  # a slip in code of ours
        ("raise ValueError('Give more.')", "torch", False),  # another's words
        ("raise RuntimeError('Give more.')", "kivla.training.run", False),
        ("import kivla.training.loss_watch as l; raise l.NonFiniteError('Give less.')", "kivla.training.run", True),
        ("import kivla; kivla.KIVLAExpertConfig(hidden_size=63)", "kivla.training.run", True),  # a config's refusals
        ("import kivla; kivla.KIVLAExpertConfig(time_conditioning='x')", "kivla.training.run", True),
        ("raise ModuleNotFoundError(name='websockets')", "kivla.serving", True),
        ("open('typed.txt')", "kivla.training.run", True),  # a file that was named on the command line
        ("open('other.txt')", "kivla.training.run", False),
    ],
)
def test_what_is_no_answer_for_people_keeps_its_traceback(line, module, is_refusal, monkeypatch, capsys):
    code = compile(line, "file.py", "exec")
    monkeypatch.setattr("kivla.commands.recipes.run", lambda words: exec(code, {"__name__": module}))
    with pytest.raises(SystemExit if is_refusal else Exception) as error:
        main(["recipes", "typed.txt"])
    assert isinstance(error.value, SystemExit) == is_refusal
    monkeypatch.setenv("KIVLA_TRACEBACK", "1")
    with pytest.raises(Exception) as error:
        main(["recipes", "typed.txt"])
    assert not isinstance(error.value, SystemExit)


@pytest.mark.parametrize(("command", "goes_on"), [("demo", True), ("study", True), ("rollout", False)])
def test_whoever_stops_a_command_that_goes_on_is_told(command, goes_on, monkeypatch, capsys):
    def stopped(words):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"kivla.commands.{command}.run", stopped)
    with pytest.raises(SystemExit) as stop:
        main([command])
    assert stop.value.code == 130
    assert (f"The same `kivla {command}` command goes on from what is done." in capsys.readouterr().err) == goes_on


@pytest.mark.parametrize("command", ["serve", "predict", "evaluate", "rollout"])
def test_the_type_of_the_weights_is_handed_to_the_policy(command, policy, monkeypatch, capsys):
    """`--dtype` at every door where a policy acts."""

    class Loaded(Exception):
        pass

    def load(*args, dtype=None, **kwargs):
        raise Loaded(dtype)

    module = importlib.import_module(f"kivla.commands.{command}")
    monkeypatch.setattr(module, "policy_pipeline", load)
    data = ["--dataset", str(DATASET)] if command in ("predict", "evaluate") else []
    for given, expected in ([], "auto"), (["--dtype", "bfloat16"], "bfloat16"):
        with pytest.raises(Loaded, match=expected):
            module.run([str(policy), *data, *given])
    with pytest.raises(SystemExit, match=r"--dtype.*bf16"):
        module.run([str(policy), *data, "--dtype", "bf16"])


@pytest.mark.parametrize("words", [["--import", "colorsys"], ["--import=colorsys"]])
def test_modules_are_imported_before_the_command(words, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    main(["recipes", *words])
    assert "colorsys" in sys.modules
