"""A checkpoint knows what made it: the same run goes on, another one is refused, and what differs is listed."""

import contextlib
import json
import shutil
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Subset

from kivla import BinningActionTokenizer, KIVLATrainingArguments, LeRobotDataset
from kivla.simulation import LeRobotWriter, make_questions
from kivla.training.checkpoints import OtherRunError, check_folder, claim, owner_of, put_aside, run_of
from kivla.training.data.mixture import Mixture
from kivla.training.data.vlm.dataset import VLMDataset
from kivla.training.run_identity import (
    DOES_NOT_MATTER,
    MATTERS,
    describe,
    describe_processing,
    differences,
    start_of,
    weights_digest,
)
from tests.helpers.policies import CHUNK, DATASET, dataset, make_policy, make_trainer

SETTINGS = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 2}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two steps, its policy saved; to be copied."""
    folder = tmp_path_factory.mktemp("trained")
    trainer = make_trainer(folder, **SETTINGS)
    trainer.train()
    trainer.save_model()
    return folder


@pytest.fixture
def used(trained, tmp_path):
    shutil.copytree(trained / "run", tmp_path / "run")
    return tmp_path


def again(folder: Path, change=lambda model, processor: None, **settings):
    model, processor = make_policy(folder / "vlm")
    change(model, processor)
    return make_trainer(folder, model, processor, **{**SETTINGS, **settings})


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------------------------------------------------- the trainer
def test_the_same_run_goes_on_and_says_so(used, caplog):
    shutil.rmtree(used / "run" / "checkpoint-2")
    (used / "run" / "config.json").unlink()
    trainer = again(used)
    trainer.train(resume_from_checkpoint=trainer.newest_checkpoint())
    assert "Going on from checkpoint-1, with 1 of 2 steps to go." in caplog.text
    assert trainer.state.global_step == 2


def test_a_run_goes_on_with_the_prompts_that_it_began_with(used):
    """A chat template may write the date: another day is no other run, and no other prompt."""
    shutil.rmtree(used / "run" / "checkpoint-2")
    (used / "run" / "config.json").unlink()
    saved = used / "run" / "checkpoint-1" / "processor_config.json"
    began_with = json.loads(saved.read_text())["prompt_frames"]

    def other_day(model, processor):
        frames = {number: {**frame, "before": "26 Nov. " + frame["before"]} for number, frame in began_with.items()}
        processor.set_prompts(frames)

    trainer = again(used, other_day)
    assert trainer.processing_class.to_dict()["prompt_frames"] != began_with
    trainer.train(resume_from_checkpoint=True)
    assert trainer.processing_class.to_dict()["prompt_frames"] == began_with


def test_one_process_makes_its_run_longer(tmp_path):
    """As in a notebook; saving writes the type of the weights into the model's config."""
    trainer = make_trainer(tmp_path, **SETTINGS)
    trainer.train()
    with pytest.raises(OtherRunError, match="Go on from there with resume_from_checkpoint=True"):
        trainer.train()
    trainer.args.max_steps = 3
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 3


def test_a_finished_run_is_done(used, caplog):
    before = files(used / "run" / "checkpoint-2")
    trainer = again(used)
    trainer.train(resume_from_checkpoint=True)
    assert "This run is done: checkpoint-2 has all of its 2 steps. Nothing is trained." in caplog.text
    assert files(used / "run" / "checkpoint-2") == before


def test_devices_logging_and_saving_make_no_other_run(used):
    trainer = again(
        used,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        logging_steps=7,
        save_steps=2,
        dataloader_num_workers=1,
        per_device_eval_batch_size=3,
        on_nonfinite="skip",
    )
    assert trainer.newest_checkpoint() == str(used / "run" / "checkpoint-2")


def double_range(model, processor):
    robot = processor.robots[None]
    actions = {**robot.statistics["actions"], "q99": 2 * robot.statistics["actions"]["q99"]}
    processor.robots[None] = replace(robot, statistics={**robot.statistics, "actions": actions})


def other_weights(model, processor):
    with torch.no_grad():
        next(model.vlm.get_decoder().layers[0].parameters()).mul_(1.01)


def insulate_partly(model, processor):
    model.config.backbone_gradient_scale = 0.5


def freeze(model, processor):
    model.vlm.requires_grad_(False)


@pytest.mark.parametrize(
    ("change", "settings", "line"),
    [
        (lambda *_: None, {"learning_rate": 1e-4}, "training.learning_rate: was 0.001, is 0.0001"),
        (lambda *_: None, {"per_device_train_batch_size": 4}, "training.examples_in_a_step: was 2, is 4"),
        (lambda *_: None, {"seed": 7}, "training.seed: was 42, is 7"),
        (lambda *_: None, {"ema_decay": 0.9}, "training.ema_decay: was None, is 0.9"),
        (insulate_partly, {}, "model.backbone_gradient_scale: was 0, is 0.5"),
        (double_range, {}, "processor.statistics.actions.q99: was"),
        (other_weights, {}, "start.weights: was"),
        (freeze, {}, "start.trained_parameters: was"),
    ],
)
def test_another_run_is_refused_and_the_difference_named(used, change, settings, line):
    with pytest.raises(OtherRunError) as error:
        again(used, change, **settings).newest_checkpoint()
    assert line in str(error.value)
    assert "Give this run an output_dir of its own; or start it anew here with restart (`--restart`)" in str(
        error.value
    )


@pytest.mark.parametrize("how", ["newest", "by name", "anew"])
def test_another_run_does_nothing(used, how):
    before = files(used / "run")
    trainer = again(used, seed=7)
    resume = {"newest": True, "by name": str(used / "run" / "checkpoint-1"), "anew": None}[how]
    with pytest.raises(OtherRunError, match=r"training\.seed: was 42, is 7"):
        trainer.train(resume_from_checkpoint=resume)
    assert trainer.state.global_step == 0
    assert files(used / "run") == before


def test_the_same_run_does_not_begin_anew_beside_its_own_checkpoints(used):
    with pytest.raises(
        OtherRunError, match=r"holds checkpoint-2 of this very run.*resume_from_checkpoint=True.*restart"
    ):
        again(used).train()


def test_a_longer_run_goes_on_and_says_what_becomes_of_the_learning_rate(used, caplog):
    trainer = again(used, max_steps=4)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 4
    assert "Going on from checkpoint-2, with 2 of 4 steps to go. It was to have 2 steps." in caplog.text
    assert "The learning rate (linear) follows the schedule of 4 steps from here" in caplog.text


def test_steps_cannot_be_taken_back(used):
    with pytest.raises(
        OtherRunError, match=r"checkpoint-2 has 2 steps, but this run is to have 1.*cannot be taken back"
    ):
        again(used, max_steps=1).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("how", ["newest", "by name"])
def test_a_checkpoint_of_an_earlier_version_is_resumed_by_its_name_only(used, caplog, how):
    for checkpoint in (used / "run").glob("checkpoint-*"):
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        del manifest["run"]
        (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    (used / "run" / "_run_identity.json").unlink()
    if how == "newest":
        with pytest.raises(OtherRunError, match=r"checkpoint-2 does not say which run made it.*resume from it by its"):
            again(used).newest_checkpoint()
    else:
        again(used).train(resume_from_checkpoint=str(used / "run" / "checkpoint-2"))
        assert "whether it is of this one was not checked" in caplog.text


@pytest.mark.parametrize("is_known", [True, False])
def test_a_policy_of_another_run_is_not_written_over(used, is_known):
    """Also one without checkpoints, and one that was not trained here."""
    for checkpoint in (used / "run").glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    if not is_known:
        (used / "run" / "_run_identity.json").unlink()
    before = files(used / "run")
    with pytest.raises(OtherRunError, match="learning_rate" if is_known else "does not say which run made it"):
        again(used, learning_rate=0.1, save_strategy="no").train()
    assert files(used / "run") == before


def test_restart_puts_the_old_run_aside_and_begins_anew(used, caplog):
    (used / "run" / "eval_results.json").write_text("{}")
    (used / "run" / "mine").mkdir()
    (used / "run" / "mine" / "notes").write_text("keep")
    before = files(used / "run")
    trainer = again(used, learning_rate=0.1, restart=True)
    assert trainer.newest_checkpoint() is None
    trainer.train()
    assert trainer.state.global_step == 2
    aside = files(used / "run" / "_earlier_run_1")
    assert aside.keys() == before.keys() - {"mine/notes"}
    assert all(before[name] == content for name, content in aside.items())
    assert (used / "run" / "mine" / "notes").read_text() == "keep"
    assert not (used / "run" / "eval_results.json").exists()
    assert run_of(used / "run" / "checkpoint-2")["training"]["learning_rate"] == 0.1
    assert "is now in" in caplog.text


def test_restart_and_resume_are_not_both_given(used):
    before = files(used / "run")
    with pytest.raises(ValueError, match="either restart or resume_from_checkpoint"):
        again(used, restart=True).train(resume_from_checkpoint=True)
    assert files(used / "run") == before


# ----------------------------------------------------------------------------------------------------------- the folder
RUN = {"facts": {}, "start": {}, "model": {}, "processor": {}, "data": {}, "training": {"seed": 0}, "versions": {}}
OTHER = {**RUN, "training": {"seed": 1}}


def test_an_interrupted_restart_still_counts_as_the_old_run(tmp_path, monkeypatch):
    """Whenever it is broken off: what is left in the folder is refused to another run, or nothing is left."""
    for broken_off_after in range(6):
        folder = tmp_path / str(broken_off_after)
        (folder / "stage_1").mkdir(parents=True)
        for name in ("config.json", "stage_1/config.json", "model.safetensors", "eval_results.json", "vlm_before.json"):
            (folder / name).write_text(name)
        claim(folder / "elsewhere", RUN)
        (folder / "elsewhere" / "_run_identity.json").rename(folder / "_run_identity.json")
        moves, rename = [], Path.rename

        def move(path, target, moves=moves, rename=rename, limit=broken_off_after):
            if len(moves) == limit:
                raise KeyboardInterrupt
            moves.append(path)
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", move)
        with contextlib.suppress(KeyboardInterrupt):
            put_aside(folder)
        monkeypatch.undo()
        left = {path.name for path in folder.iterdir()} - {"_earlier_run_1", "elsewhere"}
        assert "_run_identity.json" in left or not left
        if left & {"config.json", "stage_1"}:
            with pytest.raises(OtherRunError):
                claim(folder, OTHER)
        else:
            claim(folder, OTHER)  # the reports that are left go, too
        assert not (folder / "vlm_before.json").exists() or owner_of(folder) == RUN


def test_a_run_that_came_to_nothing_makes_room(tmp_path):
    """A run that ended before its first checkpoint, say for want of memory, does not stand in the way."""
    claim(tmp_path, RUN)
    (tmp_path / "vlm_before.json").write_text("{}")
    claim(tmp_path, OTHER)
    assert owner_of(tmp_path) == OTHER
    assert not (tmp_path / "vlm_before.json").exists()
    assert (tmp_path / "_earlier_run_1" / "vlm_before.json").exists()


def test_a_folder_where_no_run_has_been_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("draft")
    check_folder(tmp_path, RUN)
    assert put_aside(tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_damaged_mark_is_no_permission(tmp_path):
    claim(tmp_path, RUN)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "_run_identity.json").write_text('{"facts"')
    with pytest.raises(OtherRunError, match="does not say which run made it"):
        check_folder(tmp_path, RUN)


# ---------------------------------------------------------------------------------------------------------- comparing
def changed(**parts):
    base = {**RUN, "versions": {"kivla": "1"}, "facts": {"recipe": "joint"}, "start": {"weights": "a", "name": "x"}}
    return {**base, **parts}


def test_what_counts_as_a_difference():
    before = changed()
    assert differences(before, changed()) == []
    assert differences(before, changed(start={"weights": "a", "name": "moved"})) == []
    assert differences(before, changed(start={"weights": "b", "name": "y"})) == [
        "start.weights: was a, is b",
        "start.name: was x, is y",
    ]
    assert differences(before, changed(facts={})) == ["facts.recipe: was joint, is (nothing)"]
    statistics = [{"q99": [100.0, 1e-9, 3.0]}, {"q99": [100.0 + 1e-6, 2e-9, 3.0]}, {"q99": [100.1, 1e-9, 3.0]}]
    assert not differences(*(changed(processor=values) for values in statistics[:2])), "rounding of another machine"
    assert differences(*(changed(processor=values) for values in statistics[::2]))
    assert differences(changed(training={"seed": 10**9}), changed(training={"seed": 10**9 + 1}))
    assert differences(changed(training={"muon": True}), changed(training={"muon": 1.0})) == []


def test_another_version_may_know_more_but_not_otherwise():
    new = changed(versions={"kivla": "2"}, model={"new_field": None, "old_field": 1}, facts={"recipe": "joint"})
    assert differences(changed(model={"old_field": 1}), new) == []
    assert differences(changed(model={"old_field": 2}), new) == ["model.old_field: was 2, is 1"]
    assert differences(changed(model={"old_field": 1}), {**new, "versions": {"kivla": "1"}}) == [
        "model.new_field: was (nothing), is None"
    ]
    assert differences(changed(facts={}), new), "what a caller says is no matter of versions"


def test_stages_of_a_run_share_a_folder_but_no_checkpoint():
    first = changed(facts={"recipe": "pi0.5", "stage": "1 of 2"}, model={"backbone_gradient_scale": 0.0})
    second = changed(facts={"recipe": "pi0.5", "stage": "2 of 2"}, model={"backbone_gradient_scale": 1.0})
    assert differences(first, second) == []
    assert differences(first, {**second, "training": {"seed": 1}}) == ["training.seed: was 0, is 1"]
    single = changed(facts={"recipe": "joint"})
    assert "facts.recipe: was pi0.5, is joint" in differences(first, single)


def test_every_training_argument_is_decided_on():
    """A new one, of ours or of the library, must be put where it belongs."""
    names = {field.name for field in fields(KIVLATrainingArguments)}
    assert not set(MATTERS) & set(DOES_NOT_MATTER)
    assert not names - set(MATTERS) - set(DOES_NOT_MATTER)


# --------------------------------------------------------------------------------------------------------------- data
def record(folder: Path, seed: int, task: str = "touch it", shade: int = 60) -> LeRobotDataset:
    rng = np.random.default_rng(seed)
    names = {"state_names": ["x", "y"], "action_names": ["x", "y"]}
    with LeRobotWriter(folder, 10, {"front": (32, 32)}, **names, robot_type="arm", image_format="image") as writer:
        for length in (5, 7):
            pictures = np.full((length, 32, 32, 3), shade, np.uint8)
            state, actions = rng.normal(size=(2, length, 2)).astype(np.float32)
            writer.add_episode({"front": pictures}, state, actions, task=task)
    return LeRobotDataset(folder, CHUNK)


def test_data_are_known_by_their_content(tmp_path):
    data = record(tmp_path / "a", 0)
    shutil.copytree(tmp_path / "a", tmp_path / "moved")
    moved = LeRobotDataset(tmp_path / "moved", CHUNK)
    assert moved.content_digest == data.content_digest
    others = {
        "recorded anew": record(tmp_path / "b", 1),
        "another task": record(tmp_path / "c", 0, task="leave it"),
        "other pictures": record(tmp_path / "d", 0, shade=61),
        "fewer episodes": LeRobotDataset(tmp_path / "a", CHUNK, episodes=[0]),
        "other order": LeRobotDataset(tmp_path / "a", CHUNK, episodes=[1, 0]),
    }
    digests = {name: other.content_digest for name, other in others.items()}
    assert len({data.content_digest, *digests.values()}) == 6, digests


def test_the_digest_sees_every_frame_of_a_real_dataset():
    whole = LeRobotDataset(DATASET, CHUNK)
    assert whole.content_digest == dataset().content_digest
    assert LeRobotDataset(DATASET, CHUNK, episodes=whole.episodes[:1]).content_digest != whole.content_digest


def test_wrapped_and_mixed_data_are_looked_into(tmp_path):
    first, second = record(tmp_path / "a", 0), record(tmp_path / "b", 1)
    questions = VLMDataset(make_questions(3, seed=0))
    described = [
        describe(first),
        describe(second),
        describe(Subset(first, [0, 1])),
        describe(Subset(first, [0, 2])),
        describe(ConcatDataset([first, second])),
        describe(ConcatDataset([second, first])),
        describe(questions),
        describe(VLMDataset(make_questions(3, seed=1))),
        describe(Mixture([first, questions], [1, 1], 10)),
        describe(Mixture([first, questions], [1, 2], 10)),
        describe(Mixture([first, questions], [1, 1], 10, seed=1)),
    ]
    texts = [json.dumps(d, sort_keys=True) for d in described]
    assert len(set(texts)) == len(texts)
    assert describe(VLMDataset(make_questions(3, seed=0))) == describe(questions)
    assert describe(Mixture([first, questions], [2, 2], 20)) == describe(Mixture([first, questions], [1, 1], 10))


def test_questions_saved_elsewhere_are_the_same(tmp_path):
    rows = make_questions(3, seed=0)
    rows.save_to_disk(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert describe(VLMDataset.load(tmp_path / "a")) == describe(VLMDataset.load(tmp_path / "b"))


def test_the_start_is_the_vlm_and_not_what_is_random(tmp_path):
    model, processor = make_policy(tmp_path / "vlm")
    start = start_of(model)
    torch.manual_seed(1)
    for parameter in model.expert.parameters():
        torch.nn.init.normal_(parameter)
    assert start_of(model) == start
    expert = weights_digest(model.expert)
    with torch.no_grad():
        next(model.expert.parameters()).flatten()[-1] += 1e-3
    assert weights_digest(model.expert) != expert
    model.resize_token_embeddings(processor.vocab_size)
    assert start_of(model)["weights"] == start["weights"], "rows of new tokens are random"


def test_another_tokenizer_is_another_run(tmp_path):
    _, processor = make_policy(tmp_path / "vlm")
    before = json.dumps(describe_processing(processor))
    processor(images=[dataset()[0]["images"]], text=["a"], state=[dataset()[0]["state"]])
    assert json.dumps(describe_processing(processor)) == before, "using it does not change it"
    processor.action_tokenizer = BinningActionTokenizer()
    assert json.dumps(describe_processing(processor)) != before
