"""Which row of the contract holds for which type of VLM, as the table in docs/vlms.md.

python -m tests.helpers.contract_table            # print it
python -m tests.helpers.contract_table --write    # put it into docs/vlms.md
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import transformers

from kivla.modeling_kivla.backbone_probe import probe_backbone
from tests.helpers.every_type import every_type, held_types, refused_types
from tests.helpers.families import FAMILIES
from tests.helpers.families.broken import BROKEN, WITHOUT_NEW_TOKENS
from tests.helpers.families.mechanisms import mechanisms

PAGE = Path(__file__).parents[2] / "docs/vlms.md"
BEGIN = "<!-- table: written by `python -m tests.helpers.contract_table --write` -->"
END = "<!-- end of table -->"
# Rows as docs/vlms.md numbers them, and the tests that hold them for each family
ROWS = {
    "1": ["test_flow_loss_reaches_the_backbone_only_when_it_may"],
    "2": ["test_token_gradient_is_untouched_by_the_expert"],
    "3": ["test_suffix_and_expert_do_not_see_each_other", "test_expert_reads_the_prompt"],
    "4": ["test_values_do_not_depend_on_insulation"],
    "5": [
        "test_alone_equals_in_a_batch_padded_right",
        "test_alone_equals_in_a_batch_padded_left",
        "test_an_example_gives_the_same_logits_alone_and_in_a_padded_batch",
    ],
    "6": ["test_without_expert_it_is_its_vlm", "test_supervised_logits_are_the_vlms", "test_again_and_again"],
    "7": ["test_save_and_load", "test_from_vlm_keeps_the_pretrained_weights"],
    "8": ["test_they_are_read_and_learned", "test_they_are_saved", "test_they_are_said"],
    "9": ["test_threads_do_not_disturb_each_other"],
    "bf16": ["test_pictures_as_processors_make_them_reach_a_model_of_another_type"],
    "LoRA": ["test_every_family_learns_through_lora"],
    "projector": ["test_every_family_has_a_projector_and_it_is_no_part_of_the_text_model"],
    "text": ["test_no_family_looks_ahead"],
}


def exceptions(family: str) -> Iterator[tuple[str, str]]:
    """The rows that do not hold for a family, and why."""
    for row, tests in ROWS.items():
        reasons = [BROKEN.get(test, {}).get(family) for test in tests]
        if row == "8":
            reasons.append(WITHOUT_NEW_TOKENS.get(family))
        for reason in dict.fromkeys(filter(None, reasons)):
            yield row, reason


def table() -> str:
    """The table, as Markdown."""
    held, refused, types = held_types(), refused_types(), every_type()
    families = {name: held[name] for name in sorted(types) if name in held}
    notes: dict[str, int] = {}
    lines = [
        f"transformers {transformers.__version__} knows {len(types)} types of VLM. "
        f"{len(families)} are held to the contract, by {sum(map(len, families.values()))} tiny models; "
        f"{len(refused)} are refused.",
        "",
        f"| type | {' | '.join(ROWS)} | what its decoder does |",
        f"|---|{'---|' * len(ROWS)}---|",
    ]
    for name, members in families.items():
        found = {row: reason for member in members for row, reason in exceptions(member)}
        cells = [f"no ({notes.setdefault(found[row], len(notes) + 1)})" if row in found else "yes" for row in ROWS]
        configs = [FAMILIES[member].config() for member in members]
        does = set().union(*(mechanisms(config, probe_backbone(config)) for config in configs))
        lines.append(f"| {name} | {' | '.join(cells)} | {', '.join(sorted(does))} |")
    lines += ["", *(f"({number}) {reason}  " for reason, number in notes.items()), ""]
    lines += ["| refused | it ... | what would be needed |", "|---|---|---|"]
    lines += [f"| {name} | {refused[name].reason} | {refused[name].needs} |" for name in sorted(refused)]
    return "\n".join(lines)


def page_with(text: str, table: str, begin: str = BEGIN, end: str = END) -> str:
    """The page with what stands between the two markers replaced by the table."""
    before, has_begin, rest = text.partition(begin)
    _, has_end, after = rest.partition(end)
    if not has_begin or not has_end:
        raise ValueError(f"The page has no place for the table: it needs the lines\n{begin}\n{end}")
    return f"{before}{begin}\n\n{table}\n\n{end}{after}"


def print_or_write(doc: str, table: Callable[[], str], begin: str = BEGIN, end: str = END) -> None:
    """The command line of a module with a table: print it, or put it into docs/vlms.md."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--write", action="store_true", help="put the table into docs/vlms.md")
    written = table()
    if parser.parse_args().write:
        PAGE.write_text(page_with(PAGE.read_text(encoding="utf-8"), written, begin, end), encoding="utf-8")
    print(written)


if __name__ == "__main__":
    print_or_write(__doc__, table)
