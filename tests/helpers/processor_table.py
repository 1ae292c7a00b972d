"""Which processors of VLMs are tested, and which a policy cannot use, as the table in docs/vlms.md.

python -m tests.helpers.processor_table            # print it
python -m tests.helpers.processor_table --write    # put it into docs/vlms.md
"""

from collections import defaultdict

from kivla.processing.vlm_processor import OWN_PROMPTS
from tests.helpers.contract_table import print_or_write
from tests.helpers.vlm_processors import KINDS, WITHOUT, Kind

BEGIN = "<!-- processors: written by `python -m tests.helpers.processor_table --write` -->"
END = "<!-- end of processors -->"


def table() -> str:
    """The table, as Markdown."""
    families = {kind.family for kind in KINDS.values()}
    rows = defaultdict(set)
    for kind in KINDS.values():
        rows[kind.processor_class, _torchvision(kind)].add(kind.family)
    lines = [
        f"{len(rows)} processors, of {len(families)} of the tiny models in `tests/helpers/families/`:",
        "",
        "| processor | of | torchvision |",
        "|---|---|---|",
        *(f"| {name} | {', '.join(sorted(of))} | {needed} |" for (name, needed), of in sorted(rows.items())),
        "",
        f"{len(WITHOUT)} are refused by name, because they change what they are asked:",
        "",
        "| processor | of | it ... |",
        "|---|---|---|",
        *(
            f"| {kind.processor_class} | {name} | {OWN_PROMPTS[kind.processor_class]} |"
            for name, kind in sorted(WITHOUT.items())
        ),
    ]
    return "\n".join(lines)


def _torchvision(kind: Kind) -> str:
    if kind.needs == "torchvision":
        return "for pictures"
    return "for videos" if "video_processor" in kind.takes_media else "no"


if __name__ == "__main__":
    print_or_write(__doc__, table, BEGIN, END)
