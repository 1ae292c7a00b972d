"""When an answer to a question about a picture is right: the one place where it is decided.

`is_right` is what the trainer, `kivla evaluate` and the tabletop's questions count; `normalize_answer` is for the
looser comparison of the VQA v2 evaluation.
"""

import re
from collections.abc import Sequence


def is_right(answer: str, truths: Sequence[str]) -> bool:
    """Whether an answer is word for word one of the true ones; blanks around them do not matter."""
    return answer.strip() in [truth.strip() for truth in truths]


_ARTICLES = ("a", "an", "the")
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBER_WORDS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBERS)}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
# A word that lacks one of its apostrophes -> the word. VQA leaves out those that are other words without (we'll, it's).
_APOSTROPHE = {w[:i] + w[i + 1 :]: w for w in _CONTRACTIONS.split() for i, letter in enumerate(w) if letter == "'"}


def normalize_answer(answer: str) -> str:
    """An answer as the VQA v2 evaluation compares it: "The two T-shirts." -> "2 t shirts".

    In this order: punctuation becomes a space, or nothing where a space is beside it or the answer has a number such as
    1,000; full stops go unless a digit follows; lower case; number words up to ten become digits, and "none" becomes 0;
    articles go; missing apostrophes are put back.
    """
    answer = re.sub(r"[\n\t]", " ", answer).strip()
    has_thousands = re.search(r"\d,\d", answer) is not None
    text = answer
    for mark in _PUNCTUATION:
        is_apart = f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if is_apart or has_thousands else " ")
    text = re.sub(r"\.(?!\d)", "", text)
    words = [_NUMBER_WORDS.get(word, word) for word in text.lower().split()]
    return " ".join(_APOSTROPHE.get(word, word) for word in words if word not in _ARTICLES)


__all__ = ["is_right", "normalize_answer"]
