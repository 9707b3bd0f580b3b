"""Whether an answer is right: of choices by its letter, of others by its words."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

_OPTION = re.compile(r"^\s*\(?([A-Z])[.):]\s*(.*\S)\s*$", re.MULTILINE)
_MARK = re.compile(r"(?<![\w.(])\(?([A-Z])[.):](?!\S)")
_JOINT = re.compile(r"(?:[\s,;]|\s(?:or|and)\b)+$")
_SIGNS = r"(?:[^\w.?!]|_)*"
_LETTER = re.compile(
    rf"(?:\A[\W_]*|\b(?i:answer|option|choice)\b{_SIGNS}(?:(?i:is)\b{_SIGNS})?)"
    r"([A-Z])(?![^\W_])"
)
_CLOSED = re.compile(
    r"""[]).:,;!*_"`}]|'(?!\w)|\s*$|\s+(?:because|since|as|based on)\b"""
    r"|\s+is (?:correct|the (?:correct |right |best )?(?:answer|option|choice))\b",
    re.MULTILINE,
)
_ARTICLES = {"a", "an", "the"}
_POINT = r"(?:(?<=\d)|(?<![\w.]))\.(?=\d)"  # of a number, not of a sentence
_MINUS = r"(?<![\w.)\]-])-(?=\$?\.?\d)"  # of a number, no hyphen, dash or range
_PUNCTUATION = re.compile(rf"(?!{_POINT}|{_MINUS})[{re.escape(string.punctuation)}]")


@dataclass(frozen=True, kw_only=True)
class Score:
    """What an answer is worth.

    Attributes:
        kind: Whether the question gives choices.
        correct: Whether the answer is right.
        f1: Harmonic mean of the shares of words that answer and reference have in
            common; of choices, 1 or 0.
    """

    kind: Literal["multiple_choice", "open_ended"]
    correct: bool
    f1: float


def score_answer(question: str, reference: str, answer: str) -> Score:
    r"""Score an answer.

    A question gives choices if at least two of its lines begin with a letter and a dot,
    colon or bracket, or if A, B and so on stand within its lines, each with such a sign
    and a space; and if the reference chooses one of them. Then the answer has to choose
    the same, see ``chosen_letter``.

    Other answers are right if they have the same words in the same order, without case,
    punctuation and articles. The minus and the point of a number count, an article that
    stands alone is a word, and answers of nothing but signs have to be the same. An
    empty answer is never right.

    Published scores of open-ended answers are mostly given by another model; these are
    not comparable with them.

    Args:
        question: The question, with its choices.
        reference: The right answer.
        answer: The answer given.

    Returns:
        The score.

    Example:
        >>> score_answer("Which?\nA. Red\nB. Blue", "B. Blue", "b) no, (B)").correct
        False
        >>> score_answer("Which?\nA. Red\nB. Blue", "B", "The answer is B.").correct
        True
        >>> score_answer("Which? (A) Red (B) Blue", "B", "blue").correct
        True
        >>> score_answer("What moves?", "A red square.", "red square").correct
        True
        >>> score_answer("How cold is it?", "-5", "5").correct
        False
    """
    options = _find_options(question)
    wanted = chosen_letter(reference, options) if len(options) > 1 else None
    if wanted is not None:
        correct = chosen_letter(answer, options) == wanted
        return Score(kind="multiple_choice", correct=correct, f1=float(correct))
    correct = _say_the_same(reference, answer)
    f1 = 1.0 if correct else _f1(_words(reference), _words(answer))
    return Score(kind="open_ended", correct=correct, f1=f1)


def chosen_letter(answer: str, options: dict[str, str]) -> str | None:
    """Tell which choice an answer makes.

    The first capital letter of a choice that stands at the beginning, or after
    "answer", "option" or "choice", perhaps with "is" and signs between. It counts where
    the line ends or a closing sign, "is correct", "is the answer", a reason ("because",
    "since", "as", "based on") or nothing but the choice's own text follows; before any
    other word, an A is an article. Else the choice whose text the answer repeats.

    Args:
        answer: The answer.
        options: Text of each choice, by its letter.

    Returns:
        The letter; None if it makes no choice.

    Example:
        >>> options = {"A": "Red", "B": "Blue"}
        >>> [chosen_letter(said, options) for said in ("B", "(A) Red", "blue.", "C")]
        ['B', 'A', 'B', None]
        >>> said = ("Answer: **B**", "B is correct", "A Red", "A red square moves")
        >>> [chosen_letter(each, options) for each in said]
        ['B', 'B', 'A', None]
    """
    for found in _LETTER.finditer(answer):
        text, rest = options.get(found[1]), answer[found.end() :]
        if text is not None and (_CLOSED.match(rest) or _is_on_line(text, rest)):
            return found[1]
    same = [letter for letter, text in options.items() if _say_the_same(text, answer)]
    return same[0] if len(same) == 1 else None


def summarise_scores(predictions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Average predictions by category and kind, and all of each kind.

    Args:
        predictions: Each with ``category``, ``kind``, ``correct`` and ``f1``.

    Returns:
        Rows of a table, the last ones for all categories.
    """
    kinds = sorted({each["kind"] for each in predictions})
    categories = sorted({each["category"] for each in predictions})
    rows = []
    for category in [*categories, None]:
        for kind in kinds:
            some = [
                each
                for each in predictions
                if each["kind"] == kind and category in (None, each["category"])
            ]
            if some:
                rows.append(
                    {
                        "category": "all" if category is None else category or "none",
                        "kind": kind,
                        "count": len(some),
                        "accuracy": sum(each["correct"] for each in some) / len(some),
                        "f1": sum(each["f1"] for each in some) / len(some),
                    }
                )
    return rows


def _find_options(question: str) -> dict[str, str]:
    """Find the text of each choice, by its letter: of lines, else within lines."""
    lines = dict(_OPTION.findall(question))
    return lines if {"A", "B"} <= lines.keys() else _find_inline(question) or lines


def _find_inline(question: str) -> dict[str, str]:
    """Find choices A, B and so on within lines; none if there is no B."""
    found = list[re.Match[str]]()
    for mark in _MARK.finditer(question):
        if mark[1] == "A" and len(found) < 2:
            found = [mark]
        elif found and ord(mark[1]) == ord(found[-1][1]) + 1:
            found.append(mark)
    if len(found) < 2:
        return {}
    ends = [*(mark.start() for mark in found[1:]), len(question)]
    texts = (
        question[mark.end() : end].strip().partition("\n")[0]
        for mark, end in zip(found, ends, strict=True)
    )
    return {
        mark[1]: _JOINT.sub("", text) for mark, text in zip(found, texts, strict=True)
    }


def _is_on_line(text: str, rest: str) -> bool:
    """Tell whether the rest of a line is a choice's text and nothing else."""
    return _say_the_same(text, rest.partition("\n")[0])


def _say_the_same(one: str, other: str) -> bool:
    """Compare words in order; where there are none, the signs. Nothing says nothing."""
    words, others = _words(one), _words(other)
    if words or others:
        return words == others
    return one.strip() == other.strip() != ""


def _words(text: str) -> list[str]:
    """Give the words that count; articles do where there is no other word."""
    plain = text.lower().replace("\N{MINUS SIGN}", "-")
    words = _PUNCTUATION.sub(" ", plain).split()
    return [word for word in words if word not in _ARTICLES] or words


def _f1(right: list[str], given: list[str]) -> float:
    """Compare two lists of words, in any order."""
    common = (Counter(right) & Counter(given)).total()
    return 2 * common / max(len(right) + len(given), 1)
