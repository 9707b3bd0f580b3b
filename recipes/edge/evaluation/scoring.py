"""Whether an answer is right: of choices by its letter, of others by its words."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

_ALIKE = str.maketrans("\u2018\u2019\u201c\u201d\u2212\u2013", "''\"\"--")
_POWER = re.compile(r"(?<=\d)(?=[\u00b2\u00b3\u00b9\u2070-\u2079])")
_CHOICE = r"\(?([A-Za-z])[.):\u3001]"  # the last is the comma of a Chinese list
_OPTION = re.compile(rf"^\s*{_CHOICE}\s*(.*\S)\s*$", re.MULTILINE)
# Beside a script that writes no spaces, a letter stands apart without one.
_MARK = re.compile(rf"(?<![A-Za-z0-9_.(\u00c0-\u024f]){_CHOICE}(?![!-~])")
_JOINT = re.compile(r"(?:[\s,;]|\s(?:or|and)\b)+$")
_SIGNS = r"(?:[^\w.?!]|_)*"
_LETTER = re.compile(
    rf"(?:\A[\W_]*|\b(?i:answer|option|choice)\b{_SIGNS}(?:(?i:is)\b{_SIGNS})?)"
    r"([A-Za-z])(?![^\W_]|\.\w\.)"
)
_CLOSED = re.compile(
    r"""[]).:,;!*_"`}\u3001\u3002\u300d\u300f\u3011]|'(?!\w)|\s*$"""
    r"|\s+(?:because|since|as|based on)\b"
    r"|\s+is (?:correct|the (?:correct |right |best )?(?:answer|option|choice))\b",
    re.MULTILINE,
)
_ARTICLES = {"a", "an", "the"}
_POINT = r"(?:(?<=\d)|(?<![\w.]))\.(?=\d)"  # of a number, not of a sentence
_MINUS = r"(?<![\w.)\]-])-(?=\$?\.?\d)"  # of a number, no hyphen, dash or range
_PLUS = re.compile(r"(?<![\w.)\]+-])\+(?=\$?\.?\d)")  # of a number: says nothing
_NO_LETTER = re.compile(rf"(?!{_POINT}|{_MINUS})(?:[^\w\s]|_)")


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
    colon, bracket or Chinese list comma, or if A, B and so on stand within its lines,
    each with such a sign and a space; letters are all capitals or all small. And the
    reference has to choose one of them; what it answers part by part are no choices.
    Then the answer has to choose the same, see ``chosen_letter``.

    Other answers are right if they have the same words in the same order, without case,
    punctuation and articles, in whatever width their characters are written (NFKC).
    Punctuation is what Unicode calls so, and the backtick; signs such as ``+``, ``<``
    and ``$`` are words. Of a number, the minus and the point count, a plus does not. An
    article that stands alone is a word, and answers of nothing but punctuation have to
    be the same. An empty answer is never right.

    Published scores of open-ended answers are mostly given by another model; these are
    not comparable with them.

    Args:
        question: The question, with its choices.
        reference: The right answer.
        answer: The answer given.

    Returns:
        The score.

    Example:
        >>> score_answer("Which?\nA. Red\nB. Blue", "B. Blue", "a) no, (B)").correct
        False
        >>> score_answer("Which?\nA. Red\nB. Blue", "B", "The answer is B.").correct
        True
        >>> score_answer("Which? (A) Red (B) Blue", "B", "blue").correct
        True
        >>> score_answer("What moves?", "A red square.", "red square").correct
        True
        >>> score_answer("How cold is it?", "-5", "5").correct
        False
        >>> score_answer("Which language?", "C++", "C").correct
        False
    """
    options = _find_options(question)
    wanted = None
    if options and not _find_options(reference):  # else they are its parts
        wanted = chosen_letter(reference, options)
    if wanted is not None:
        correct = chosen_letter(answer, options) == wanted
        return Score(kind="multiple_choice", correct=correct, f1=float(correct))
    correct = _say_the_same(reference, answer)
    f1 = 1.0 if correct else _f1(_words(reference), _words(answer))
    return Score(kind="open_ended", correct=correct, f1=f1)


def chosen_letter(answer: str, options: dict[str, str]) -> str | None:
    """Tell which choice an answer makes.

    The first letter of a choice, capital or small, that stands at the beginning, or
    after "answer", "option" or "choice", perhaps with "is" and signs between. It counts
    where the line ends or a closing sign, "is correct", "is the answer", a reason
    ("because", "since", "as", "based on") or nothing but the choice's own text follows;
    before any other word, an A is an article. Else the choice whose text the answer
    repeats, which comes before a small letter.

    Args:
        answer: The answer.
        options: Text of each choice, by its letter, a capital.

    Returns:
        The letter; None if it makes no choice.

    Example:
        >>> options = {"A": "Red", "B": "Blue"}
        >>> [chosen_letter(said, options) for said in ("B", "(a) Red", "blue.", "C")]
        ['B', 'A', 'B', None]
        >>> said = ("Answer: **B**", "B is correct", "A Red", "A red square moves")
        >>> [chosen_letter(each, options) for each in said]
        ['B', 'B', 'A', None]
    """
    answer = _plain(answer)
    same = [letter for letter, text in options.items() if _say_the_same(text, answer)]
    for found in _LETTER.finditer(answer):
        if found[1].islower() and len(same) == 1:
            break
        letter, rest = found[1].upper(), answer[found.end() :]
        text = options.get(letter)
        if text is not None and (_CLOSED.match(rest) or _is_on_line(text, rest)):
            return letter
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
    """Find the text of each choice, by its letter: of lines, else within lines.

    Those with capital letters come first; with a small letter a sentence may begin.
    """
    question = _plain(question)
    for in_case in (str.upper, str.lower):
        lines = {
            mark[1].upper(): mark[2]
            for mark in _OPTION.finditer(question)
            if mark[1] == in_case(mark[1])
        }
        if not {"A", "B"} <= lines.keys():
            lines = _find_inline(question, in_case) or lines
        if len(lines) > 1:
            return lines
    return {}


def _find_inline(question: str, in_case: Callable[[str], str]) -> dict[str, str]:
    """Find choices A, B and so on within lines; none if there is no B."""
    found = list[re.Match[str]]()
    for mark in _MARK.finditer(question):
        if mark[1] == in_case("A") and len(found) < 2:
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
        mark[1].upper(): _JOINT.sub("", text)
        for mark, text in zip(found, texts, strict=True)
    }


def _is_on_line(text: str, rest: str) -> bool:
    """Tell whether the rest of a line is a choice's text and nothing else."""
    return _say_the_same(text, rest.partition("\n")[0])


def _say_the_same(one: str, other: str) -> bool:
    """Compare words in order; where there are none, the rest, which says something."""
    words, others = _words(one), _words(other)
    if words or others:
        return words == others
    return _plain(one).strip() == _plain(other).strip() != ""


def _plain(text: str) -> str:
    """Write characters of any width, quotes and the minus as a keyboard does."""
    text = _POWER.sub("^", text)  # else ten squared would be 102
    return unicodedata.normalize("NFKC", text).translate(_ALIKE)


def _words(text: str) -> list[str]:
    """Give the words that count; articles do where there is no other word.

    An "a" beside a sign of mathematics is the name of a number.
    """
    plain = _NO_LETTER.sub(_blank, _PLUS.sub("", _plain(text).lower()))
    words = "".join(map(_apart, plain)).split()
    sides = zip(["", *words], words, [*words[1:], ""], strict=False)
    return [
        word
        for before, word, after in sides
        if word not in _ARTICLES or (word == "a" and _is_sign(before + after))
    ] or words


def _is_sign(words: str) -> bool:
    """Tell whether there is a sign of mathematics in them."""
    return any(unicodedata.category(each) == "Sm" for each in words)


def _blank(found: re.Match[str]) -> str:
    """Let a space stand for punctuation; the backtick quotes, too."""
    sign = found[0]
    return " " if sign == "`" or unicodedata.category(sign)[0] == "P" else sign


def _apart(character: str) -> str:
    """Let a sign be a word of its own, however it is spaced."""
    return f" {character} " if unicodedata.category(character)[0] == "S" else character


def _f1(right: list[str], given: list[str]) -> float:
    """Compare two lists of words, in any order."""
    common = (Counter(right) & Counter(given)).total()
    return 2 * common / max(len(right) + len(given), 1)
