"""`kivla evaluate` from end to end on a tiny policy, and its figures on predictions that are known."""

import json
import shutil
from pathlib import Path

import datasets
import evaluate as evaluate_library
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants
from PIL import Image
from transformers import pipeline

from kivla.cli import main
from kivla.training.evaluation.policy_evaluation import draw, format_report, measure_answers, measure_chunks, predict
from kivla.training.evaluation.predictions import predict_dataset
from tests.helpers.lerobot_folder import CAMERA, write_folder
from tests.helpers.policies import DATASET, dataset, make_policy


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """What is not here is not asked for again and again."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(autouse=True)
def metrics_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate_library.config, "HF_METRICS_CACHE", str(tmp_path / "metrics"))


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    model, processor = make_policy(folder / "vlm")
    model.resize_token_embeddings(processor.vocab_size)
    model.save_pretrained(folder / "policy")
    processor.save_pretrained(folder / "policy")
    return str(folder / "policy")


@pytest.fixture(scope="module")
def pipe(policy):
    return pipeline("action-prediction", model=policy)


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """Three questions on disk."""
    folder = tmp_path_factory.mktemp("questions") / "rows"
    image = Image.fromarray(np.zeros((32, 32, 3), np.uint8))
    answers = ["yes", "no", "two"]
    messages = [
        [
            {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": f"question {i}"}]},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ]
        for i, answer in enumerate(answers)
    ]
    features = datasets.Features(
        {
            "images": datasets.List(datasets.Image()),
            "messages": datasets.List(
                {
                    "role": datasets.Value("string"),
                    "content": datasets.List({"type": datasets.Value("string"), "text": datasets.Value("string")}),
                }
            ),
        }
    )
    rows = datasets.Dataset.from_dict({"images": [[image]] * 3, "messages": messages}, features)
    rows.save_to_disk(folder)
    return folder


class FakePipe:
    """Predicts what was demonstrated plus an error; every third sequence does not decode."""

    def __init__(self, pipe, error: float, decodes=lambda i: i % 3 != 2):
        self.processor, self.error, self.decodes, self.seen = pipe.processor, error, decodes, 0

    def __call__(self, observations, **options):
        results = []
        for _ in observations:
            chunk = dataset()[self.frames[self.seen]]["actions"] + self.error
            results.append({"actions": chunk if self.decodes(self.seen) else None})
            self.seen += 1
        return results

    frames = np.linspace(0, len(dataset()) - 1, 9).round().astype(int)


def test_the_command(policy, pipe, questions, tmp_path, capsys):
    options = ["--num_frames", "9", "--num_steps", "2", "--seed", "3", "--vlm_dataset", str(questions)]
    main(["evaluate", policy, "--dataset", str(DATASET), *options, "--output_dir", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "evaluate.json").read_text())
    expected = predict_dataset(pipe, dataset(), 9, num_steps=2, seed=3)
    assert report["action_error"]["mae"] == pytest.approx(expected["action_mae"], rel=1e-5)
    assert report["mean_action_error"]["mae"] == pytest.approx(expected["mean_action_mae"], rel=1e-5)
    assert (report["num_chunks"], report["decoding_failures"]) == (9, 0)
    assert report["tokenizer"]["tokens_per_chunk"] > 0 and report["answers"]["num_questions"] == 3
    width, height = Image.open(tmp_path / "out" / "evaluate.png").size
    assert width > 1000 and height > 800

    table = {line.split()[0]: line.split()[1:] for line in printed.splitlines() if len(line.split()) == 4}
    assert len(report["dimensions"]) == 4
    for row in report["dimensions"]:
        error, mean_error, times = table[row["name"]]
        assert float(error) == pytest.approx(row["mae"], abs=1e-4)
        assert float(mean_error) == pytest.approx(row["mean_action_mae"], abs=1e-4)
        is_constant = row["times_better_than_mean"] is None
        assert times == ("-" if is_constant else f"{row['mean_action_mae'] / row['mae']:.2f}")
    assert float(table["all"][0]) == pytest.approx(report["action_error"]["mae"], abs=1e-4)
    for figure in (report["tokenizer"]["tokens_per_chunk"], report["smoothness"]["jerk_ratio"]):
        assert f"{figure:.1f}" in printed
    assert "3 questions: exact match 0.0 %" in printed


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Held-out texts as JSON lines."""
    file = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    words = ["Tea is a drink made of leaves.", "The moon turns around the earth.", "Iron rusts in wet air."]
    file.write_text("".join(f"{json.dumps({'body': text})}\n" for text in words))
    return str(file)


def test_texts_alone_and_the_vlm_before(policy, texts, questions, tmp_path, capsys):
    """Without demonstrations; the VLM alone has what stands as "before" beside the policy."""
    vlm = str(Path(policy).parent / "vlm")
    options = ["--text_dataset", texts, "--text_length", "20", "--vlm_dataset", str(questions)]
    main(["evaluate", policy, *options, "--before", vlm, "--output_dir", str(tmp_path / "policy")])
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "policy" / "evaluate.json").read_text())
    row = report["texts"]
    assert (row["num_texts"], row["num_tokens"]) == (3, 57)
    assert row["of_action_tokens"] > 0, "new rows take probability from the words"
    assert row["difference"]["mean"] == pytest.approx(row["nll"]["mean"] - row["before"]["mean"])
    by_text = row["text_by_text"]
    assert sum(by_text["nll"]) / sum(by_text["tokens"]) == pytest.approx(row["nll"]["mean"])
    assert f"difference on the same texts: {row['difference']['mean']:.4f} (" in printed
    assert "before: 3 questions: exact match 0.0 %" in printed
    assert not (tmp_path / "policy" / "evaluate.png").exists()

    main(["evaluate", vlm, *options, "--output_dir", str(tmp_path / "vlm")])
    alone = json.loads((tmp_path / "vlm" / "evaluate.json").read_text())
    assert alone["texts"]["text_by_text"]["nll"] == row["text_by_text_before"]["nll"]
    assert alone["texts"]["difference"] is alone["texts"]["before"] is alone["answers_before"] is None
    assert alone["answers"] == report["answers_before"]


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "nothing to measure on: give --dataset, --text_dataset or --vlm_dataset"),
        (["--text_dataset", "x", "--num_frames", "3"], "--num_frames cannot apply: there is no --dataset"),
        (["--text_dataset", "x", "--episodes", "3"], "--episodes cannot apply: there is no --dataset"),
        (["--dataset", "x", "--num_texts", "3"], "--num_texts cannot apply: there is no --text_dataset"),
        (["--dataset", "x", "--before", "y"], "--before cannot apply: it is compared in texts and answers"),
        (["--text_dataset", "nowhere.jsonl", "--before", "no/such"], "'no/such' is neither a folder here"),
    ],
)
def test_options_that_cannot_apply(policy, options, message, capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", policy, *options])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_data_that_differ_from_what_the_policy_acts_on_are_named(command, policy, tmp_path, capsys):
    def words(data) -> list[str]:
        return [command, policy, "--dataset", str(data), "--num_frames", "2", "--output_dir", str(tmp_path / "out")]

    shutil.copytree(DATASET, tmp_path / "scaled")
    for file in (tmp_path / "scaled" / "data").rglob("*.parquet"):
        table = pq.read_table(file)
        actions = [[100 * value for value in row] for row in table["action"].to_pylist()]
        column = table.schema.get_field_index("action")
        pq.write_table(table.set_column(column, table.field("action"), pa.array(actions, table["action"].type)), file)
    main(words(tmp_path / "scaled"))
    assert "100 % of the actions of" in (printed := capsys.readouterr().out) and "lie far outside" in printed
    with pytest.raises(SystemExit, match="is the --dataset itself"):
        main([*words(tmp_path / "scaled"), "--output_dir", str(tmp_path / "scaled")])
    write_folder(tmp_path / "other", dim=6)
    with pytest.raises(SystemExit, match="6-dimensional actions, the policy 4"):
        main([*words(tmp_path / "other"), "--cameras", f"{dataset().cameras[0]}={CAMERA}"])


def test_acting_by_tokens_is_handed_to_the_policy(policy, tmp_path, monkeypatch):
    seen = []

    def spy(pipe, data, num_frames, batch_size=16, **options):
        seen.append(options)
        return predict_dataset(pipe, data, num_frames, batch_size, seed=0)

    monkeypatch.setattr("kivla.training.evaluation.policy_evaluation.predict_dataset", spy)
    command = ["evaluate", policy, "--dataset", str(DATASET), "--num_frames", "2", "--output_dir", str(tmp_path)]
    main([*command, "--acts_by", "tokens"])
    main(command)
    assert seen[0] == {"seed": 0, "num_steps": None, "noise_scale": None, "cameras": None, "acts_by": "tokens"}
    assert "acts_by" not in seen[1], "the policy's own way"
    report = json.loads((tmp_path / "evaluate.json").read_text())
    assert report["acts_by"] == "flow" and report["answers"] is None


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_columns_are_those_that_the_policy_was_trained_on(command, policy, tmp_path, capsys):
    folder = tmp_path / "policy"
    shutil.copytree(policy, folder)
    columns = {"action_key": ["action[2:4]", "action[0:2]"], "state_key": ["observation.state"]}
    (folder / "training_facts.json").write_text(json.dumps({"robots": [{"name": None, **columns}]}))
    words = [command, str(folder), "--dataset", str(DATASET), "--num_frames", "2"]
    main([*words, "--output_dir", str(tmp_path / "as_trained")])
    assert "read as what the policy was trained on, --action_key action[2:4] action[0:2]\n" in capsys.readouterr().out
    main([*words, "--output_dir", str(tmp_path / "as_asked"), "--action_key", "action"])
    assert "was trained on" not in capsys.readouterr().out
    if command == "predict":
        return
    reports = [json.loads((tmp_path / name / "evaluate.json").read_text()) for name in ("as_trained", "as_asked")]
    trained, asked = ([row["name"] for row in report["dimensions"]] for report in reports)
    assert trained == [f"action.{name}" if name == "action" else name for name in asked[2:] + asked[:2]]
    assert reports[0]["action_key"] == columns["action_key"]


def test_chunks_that_do_not_decode_are_counted_and_left_out(pipe, tmp_path):
    data = dataset()
    chunks = predict(FakePipe(pipe, error=0.25), data, num_frames=9, batch_size=4)
    assert chunks["decoding_failures"] == 3 and len(chunks["titles"]) == len(chunks["predicted"]) == 6
    report = measure_chunks(chunks, data)
    assert (report["num_chunks"], report["decoding_failures"]) == (6, 3)
    assert report["action_error"]["mae"] == pytest.approx(0.25, rel=1e-5)
    assert report["action_error"]["end_point_error"] == pytest.approx(0.25 * data.action_dim**0.5, rel=1e-5)
    assert report["smoothness"]["jerk_ratio"] == pytest.approx(1, rel=1e-4), "a constant error has no jerk"
    kept = [i for i in range(9) if i % 3 != 2]
    items = [data[int(FakePipe.frames[i])] for i in kept]
    np.testing.assert_array_equal(chunks["is_pad"], [item["action_is_pad"] for item in items])
    np.testing.assert_array_equal(chunks["demonstrated"], [item["actions"] for item in items])
    real = ~chunks["is_pad"]
    mean = np.abs(data.statistics["actions"]["mean"] - chunks["demonstrated"])[real].mean(0)
    figures = [row["mean_action_mae"] for row in report["dimensions"]]
    np.testing.assert_allclose(figures, mean, rtol=1e-6)
    printed = format_report({**report, "tokenizer": None})
    assert "6 chunks of 6 steps; 3 more did not decode" in printed
    draw(tmp_path / "page.png", chunks, report, data.fps, count=20)
    assert Image.open(tmp_path / "page.png").size[0] > 1000, "more chunks were asked for than there are"


def test_no_chunk_decodes(pipe):
    with pytest.raises(ValueError, match="None of the 9 sequences of action tokens is a chunk of 6 x 4 values"):
        predict(FakePipe(pipe, 0.0, decodes=lambda i: False), dataset(), num_frames=9, batch_size=4)


def test_dimensions_that_do_not_vary_and_chunks_without_jerk():
    chunks = {
        "predicted": np.array([[[1.0, 2.0]], [[3.0, 2.0]]]),
        "demonstrated": np.array([[[2.0, 2.0]], [[4.0, 2.0]]]),
        "mean_action": np.broadcast_to(np.array([3.0, 2.0]), (2, 1, 2)),
        "is_pad": np.zeros((2, 1), dtype=bool),
        "decoding_failures": 0,
    }

    class Data:
        action_names, action_dim, chunk_size, fps = None, 2, 1, 10

    report = measure_chunks(chunks, Data())
    assert [row["times_better_than_mean"] for row in report["dimensions"]] == [1.0, None]
    assert [row["name"] for row in report["dimensions"]] == ["action 0", "action 1"]
    assert report["smoothness"] is None
    printed = format_report({**report, "tokenizer": None})
    assert printed.splitlines()[4].split() == ["action", "1", "0.0000", "0.0000", "-"]
    assert printed.splitlines()[-1].split() == ["jerk", "ratio", "-"]
    json.dumps(report, allow_nan=False)


def test_answers_are_counted(pipe, questions, monkeypatch):
    asked = []

    def answer(model, vlm_processor, rows, batch_size):
        asked.extend(rows[0:2]["messages"] + rows[2:4]["messages"])
        return ["yes", "maybe", "2."]

    monkeypatch.setattr("kivla.training.evaluation.policy_evaluation.ask", answer)
    match = measure_answers(pipe.model, pipe.processor.vlm_processor, str(questions), batch_size=2)
    assert match["exact_match"] == pytest.approx(1 / 3)
    assert match["short_answer_accuracy"] == pytest.approx(2 / 3), "2. is two"
    assert [message["content"][-1]["text"] for (message,) in asked] == [f"question {i}" for i in range(3)]


def test_a_folder_with_splits(pipe, questions, tmp_path):
    datasets.DatasetDict({"train": datasets.load_from_disk(questions)}).save_to_disk(tmp_path / "splits")
    with pytest.raises(ValueError, match="has the splits train; give the folder of one"):
        measure_answers(pipe.model, pipe.processor.vlm_processor, str(tmp_path / "splits"), batch_size=2)
