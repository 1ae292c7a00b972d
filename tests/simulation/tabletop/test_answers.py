import pytest

from kivla.demo.tiny_vlm import make_tiny_vlm, train_tokenizer
from kivla.simulation import make_questions
from kivla.simulation.tabletop.answers import answer_accuracy, format_accuracy
from kivla.training.evaluation.vlm_answers import answer_of, ask


@pytest.fixture(scope="module")
def questions():
    return make_questions(60, seed=5)


def test_true_answers_score_everything_and_others_nothing(questions):
    truth = [answer_of(messages) for messages in questions["messages"]]
    table = answer_accuracy(questions, truth)
    assert all(row["accuracy"] == 1 for row in table.values())
    assert table["all"]["asked"] == len(questions)
    assert sum(row["asked"] for kind, row in table.items() if kind != "all" and "to one" not in kind) == len(questions)
    assert all(row["correct"] == 0 for row in answer_accuracy(questions, ["?"] * len(questions)).values())


def test_a_neighbouring_cell_counts_to_one_cell_alone(questions):
    cells = questions.filter(lambda row: row["kind"] == "cell")
    moved = []
    for messages in cells["messages"]:
        _, column, _, row = answer_of(messages).split()
        moved.append(f"column {min(int(column) + 1, 6) if column != '6' else 5} row {row}")
    table = answer_accuracy(cells, moved)
    assert table["cell"]["accuracy"] == 0
    assert table["cell to one cell"]["accuracy"] == 1


def test_answers_do_not_depend_on_the_batch(questions):
    few = questions.select(range(7))
    texts = [item["text"] for row in few for m in row["messages"] for item in m["content"] if item["text"]]
    model, processor = make_tiny_vlm("llava", train_tokenizer(texts * 5), hidden_size=32, num_layers=2)
    together = ask(model, processor, few, batch_size=7)
    assert together == ask(model, processor, few, batch_size=1)
    assert len(set(together)) > 1, "an untrained model answers differently to different questions"


def test_the_table_shows_every_kind(questions):
    table = answer_accuracy(questions, ["yes"] * len(questions))
    printed = format_accuracy(table)
    assert all(kind in printed for kind in table)
    assert f"{100 * table['presence']['accuracy']:.1f} %" in printed
