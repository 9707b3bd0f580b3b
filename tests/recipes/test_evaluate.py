"""Answers of a trained model, against what held-out scoring and a recount say."""

import errno
import json
import re
import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from fastslow.qwen2_vl.chat import PLACEHOLDER
from recipes import evaluate as recipe
from recipes.edge.data.clips import make_clips
from recipes.edge.evaluation.scoring import (
    chosen_letter,
    score_answer,
    summarise_scores,
)
from recipes.edge.files.provenance import code_versions
from tests.recipes.broken import without_pixels

Evaluate = Callable[[Path, int], tuple[dict[str, Any], str]]
COLOURS = "A. red\nB. green\nC. blue\nD. yellow"


@pytest.fixture(scope="module")
def trained(preloaded: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a model that answers something, right or wrong."""
    folder = tmp_path_factory.mktemp("evaluate")
    clips = folder / "clips"
    make_clips(clips, num_clips=32, held_out=12, seed=0, num_frames=4, size=(56, 84))
    preloaded.run(
        "recipes/qwen2vl_tiny.py",
        *("--output-dir", str(folder / "run")),
        *("--data-path", str(clips / "train.jsonl")),
        *("--eval-data-path", str(clips / "held_out.jsonl")),
        *("--max-steps", "60", "--save-steps", "60", "--tokens-per-row", "500"),
        log=folder / "run.log",
    )
    return folder


@pytest.fixture(scope="module")
def evaluate(preloaded: Any, trained: Path) -> Evaluate:
    def evaluate(data: Path, ranks: int) -> tuple[dict[str, Any], str]:
        output = trained / "scores" / f"{data.stem}-{ranks}.json"
        log = trained / f"{data.stem}-{ranks}.log"
        words = (str(trained / "run" / "model-60"), str(data), "--output", str(output))
        preloaded.run_ranks(ranks, "recipes/evaluate.py", *words, log=log)
        return json.loads(output.read_text()), log.read_text()

    return evaluate


def test_answers_are_scored_as_the_run_scored_them(
    trained: Path, evaluate: Evaluate
) -> None:
    found, said = evaluate(trained / "clips" / "held_out.jsonl", 1)
    log = (trained / "run" / "train.log").read_text()
    (accuracy,) = re.findall(r"held-out accuracy (\S+) on 12 questions", log)
    (everything,) = [row for row in found["scores"] if row["category"] == "all"]
    assert f"{everything['accuracy']:.3f}" == accuracy
    answers = found["answers"]
    assert len(answers) == everything["count"] == 12
    right = [each["answer"] == each["reference"] for each in answers]
    assert [each["correct"] for each in answers] == right
    assert len({each["answer"] for each in answers}) > 0
    assert f"| all | open_ended | 12 | {accuracy} |" in said
    assert found["settings"]["tokens_per_row"] == 500
    assert found["versions"] == code_versions()


def test_what_is_asked_after_the_last_answer_is_left_out(
    trained: Path, evaluate: Evaluate
) -> None:
    clips = trained / "clips"
    row = json.loads((clips / "held_out.jsonl").read_text().splitlines()[0])
    asked, data = row["conversations"][0], clips / "asked_on.jsonl"
    longer = row | {
        "id": "longer",
        "video": [row["video"]] * 2,
        "conversations": [*row["conversations"], asked],
    }
    assert PLACEHOLDER.search(asked["value"])
    data.write_text(f"{json.dumps(row)}\n{json.dumps(longer)}\n")
    first, second = evaluate(data, 1)[0]["answers"]
    assert first["answer"] == second["answer"]


def test_the_script_of_the_page_answers_alike(
    preloaded: Any, trained: Path, evaluate: Evaluate, tmp_path: Path
) -> None:
    clips, data = trained / "clips", trained / "clips" / "one.jsonl"
    row = (clips / "held_out.jsonl").read_text().splitlines()[3]
    data.write_text(f"{row}\n")
    (expected,) = evaluate(data, 1)[0]["answers"]
    said, errors, code = preloaded.ask(
        "docs/howto/answer.py",
        str(trained / "run" / "model-60"),
        str(clips / json.loads(row)["video"]),
        expected["question"].removeprefix("<video>\n"),
        folder=tmp_path,
    )
    assert (said, code) == (f"{expected['answer']}\n", 0), errors
    assert expected["answer"]


@pytest.fixture
def ask_page(preloaded: Any, tmp_path: Path) -> Callable[..., tuple[str, str, int]]:
    """Run the script of the page; give what it says, its errors and its exit code."""

    def ask(*words: str) -> tuple[str, str, int]:
        said: tuple[str, str, int] = preloaded.ask(
            "docs/howto/answer.py", *words, folder=tmp_path
        )
        return said

    return ask


def test_the_script_of_the_page_takes_a_moved_model_with_its_settings(
    trained: Path, ask_page: Callable[..., tuple[str, str, int]], tmp_path: Path
) -> None:
    run, moved = trained / "run", tmp_path / "elsewhere" / "model-60"
    shutil.copytree(run / "model-60", moved)
    clip = str(trained / "clips" / "videos" / "00000.mp4")
    refusal = (
        f"error: {moved.parent / 'settings.yaml'} does not exist; --config says how "
        "clips become tokens where the checkpoint is of no run\n"
    )
    assert ask_page(str(moved), clip, "Which colour?") == ("", refusal, 1)
    given = ("--config", str(run / "settings.yaml"))
    said, errors, code = ask_page(str(moved), clip, "Which colour?", *given)
    assert code == 0, errors
    there, _, _ = ask_page(str(run / "model-60"), clip, "Which colour?")
    assert said == there


def test_the_script_of_the_page_refuses_in_one_sentence(
    trained: Path, ask_page: Callable[..., tuple[str, str, int]], tmp_path: Path
) -> None:
    model = str(trained / "run" / "model-60")
    whole = trained / "clips" / "videos" / "00000.mp4"
    lost, cut, broken = (tmp_path / f"{name}.mp4" for name in ("lost", "cut", "broken"))
    cut.write_bytes(whole.read_bytes()[:1000])
    broken.write_bytes(without_pixels(whole))
    for clip, reason in (
        (lost, "cannot be opened: No such file or directory"),
        (cut, "cannot be opened as a video: Invalid data found when processing input"),
    ):
        refused = ask_page(model, str(clip), "Which colour?")
        assert refused == ("", f"error: {clip} {reason}\n", 1)
    _, errors, code = ask_page(model, str(broken), "Which colour?")
    assert errors.splitlines()[-1].startswith(f"error: {broken} breaks before frame ")
    assert "Traceback" not in errors
    assert code == 1
    _, errors, code = ask_page(model, str(whole))
    missing = "answer.py: error: the following arguments are required: question"
    assert (errors.splitlines()[-1], code) == (missing, 2)
    gone = tmp_path / "model-3"
    refusal = (
        f"error: weights are {gone}, which is no folder; they are a folder or a name "
        "on the hub\n"
    )
    assert ask_page(str(gone), str(whole), "Which colour?") == ("", refusal, 1)


@pytest.mark.skipif(
    find_spec("lmms_eval") is not None, reason="lmms-eval is installed here"
)
def test_lmms_eval_that_is_not_installed_is_named_with_how_to_install_it(
    preloaded: Any, tmp_path: Path
) -> None:
    install = 'pip install lmms-eval "filelock<4"'
    refusal = (
        f"error: lmms-eval is not installed; {install} comes first, this project after "
        "it (docs/howto/evaluate.md)\n"
    )
    refused = preloaded.ask("recipes/run_lmms_eval.py", "--help", folder=tmp_path)
    assert refused == ("", refusal, 1)
    page = Path(__file__).parents[2] / "docs" / "howto" / "evaluate.md"
    assert f"`{install}` comes first" in page.read_text()


def test_ranks_share_questions_and_broken_clips_are_wrong(
    trained: Path, evaluate: Evaluate
) -> None:
    rows = [
        json.loads(line)
        for line in (trained / "clips" / "held_out.jsonl").read_text().splitlines()
    ]
    for row in rows:
        row["video"] = str(trained / "clips" / row["video"])
    broken = trained / "broken.mp4"
    broken.write_bytes(without_pixels(Path(rows[0]["video"])))
    rows[0]["video"] = str(broken)
    rows[1]["video"] = "lost.mp4"
    asked = {"from": "human", "value": f"<image>\nWhich colour?\n{COLOURS}"}
    choice = [asked, {"from": "gpt", "value": "B. green"}]
    rows[2] |= {"category": "choice", "conversations": choice}
    lost = [rows[1] | {"id": f"lost {n}"} for n in range(6)]
    data = trained / "mixed.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *lost]))
    whole, said = evaluate(data, 1)
    halves, _ = evaluate(data, 2)
    assert halves["answers"] == whole["answers"]
    assert halves["scores"] == whole["scores"] == summarise_scores(whole["answers"])
    first = whole["answers"][0]
    assert (first["sample_id"], first["correct"], first["f1"]) == (
        rows[0]["id"],
        False,
        0,
    )
    assert str(broken) in first["error"]
    not_asked = [each["sample_id"] for each in whole["not_asked"]]
    assert not_asked == [rows[1]["id"], *(row["id"] for row in lost)]
    kinds = {(row["category"], row["kind"]): row["count"] for row in whole["scores"]}
    assert kinds == {
        ("choice", "multiple_choice"): 1,
        ("none", "open_ended"): 10,
        ("all", "multiple_choice"): 1,
        ("all", "open_ended"): 10,
    }
    assert "1 clips could not be decoded and count as wrong; 7 rows could not" in said
    assert said.count("lost.mp4") == 5
    assert "\n  and 2 more, which the file names\n" in said


def test_a_checkpoint_of_no_run_needs_settings(
    preloaded: Any, trained: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained / "run" / "model-60", tmp_path / "model")
    words = ("recipes/evaluate.py", str(tmp_path / "model"), "data.jsonl")
    _, errors, code = preloaded.ask(*words, folder=tmp_path)
    assert code != 0
    assert "--config says how clips become tokens" in errors


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (("--max-new-tokens", "0"), "max_new_tokens is 0; it must be at least 1"),
        (
            ("--output", "{folder}"),
            "output is {folder}, which is no file; all answers go into one file",
        ),
        (
            ("--output", "/dev/full"),
            "output is /dev/full, which is no file; all answers go into one file",
        ),
        (
            ("--output", "{folder}/a/x"),
            "output is {folder}/a/x but {folder}/a cannot take a file (File exists)",
        ),
    ],
)
def test_what_cannot_end_well_is_refused_before_the_model(
    flags: tuple[str, ...],
    error: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "a").write_text("")
    words = [each.format(folder=tmp_path) for each in flags]
    monkeypatch.setattr(sys, "argv", ["evaluate", "./absent", "absent.jsonl", *words])
    with pytest.raises(SystemExit) as ended:
        recipe.main()
    assert ended.value.code == f"error: {error.format(folder=tmp_path)}"


def test_a_full_disk_is_refused_before_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(recipe, "TemporaryFile", refuse)
    file = tmp_path / "new" / "x.json"
    with pytest.raises(ValueError) as error:
        recipe.refuse_options(recipe.Options(checkpoint="", data="", output=file))
    assert str(error.value) == (
        f"output is {file} but {file.parent} cannot take a file (No space left on "
        "device)"
    )


def test_a_checkpoint_without_configuration_is_refused_in_words(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained / "run" / "model-60", tmp_path / "model")
    (tmp_path / "model" / "config.json").unlink()
    settings = str(trained / "run" / "settings.yaml")
    monkeypatch.chdir(tmp_path)
    words = ["evaluate", "./model", "absent.jsonl", "--config", settings]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        recipe.main()
    assert ended.value.code == (
        "error: model has no config.json; a checkpoint describes itself"
    )


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("", "it has no row"),
        (
            '{"video": "lost.mp4"}',
            "the row has no conversation; it needs conversations or messages",
        ),
    ],
)
def test_data_without_a_question_is_refused(
    row: str,
    reason: str,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(row)
    model, output = trained / "run" / "model-60", tmp_path / "scores.json"
    words = ["evaluate", str(model), str(data), "--output", str(output)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        recipe.main()
    assert ended.value.code == (
        f"error: {data} has no sample that can be used: {reason}"
    )
    assert not output.exists()


def test_the_table_is_there_where_the_file_is_not(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fill_the_disk(file: Path, text: str) -> None:
        raise OSError(f"{file} of {len(text)} characters: no space is left")

    monkeypatch.setattr(recipe, "write_whole", fill_the_disk)
    options = recipe.Options(
        checkpoint=str(trained / "run" / "model-60"),
        data=str(trained / "clips" / "held_out.jsonl"),
        output=tmp_path / "scores.json",
    )
    with pytest.raises(OSError, match="no space is left"):
        recipe.evaluate(options)
    assert "| all | open_ended | 12 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(B) green", "B"),
        ("B. green", "B"),
        (" B: because A is wrong", "B"),
        ("The answer is (B).", "B"),
        ("the correct option is B", "B"),
        ("green", "B"),
        ("Green.", "B"),
        ("A green thing", None),
        ("Blue or green", None),
        ("E", None),
        ("", None),
        ("I think so", None),
        ("Answer: B", "B"),
        ("Option B", "B"),
        ("Option (B)", "B"),
        ("The Answer is B", "B"),
        ("THE ANSWER IS: B", "B"),
        ("Answer: (B) Green", "B"),
        ("Answer:\nB\nIt rolls.", "B"),
        ("**B**", "B"),
        ("__B__ since A stands", "B"),
        ("'B'", "B"),
        ("the answer is **B**", "B"),
        ("**Answer:** B", "B"),
        ("B) Green", "B"),
        ("B Green", "B"),
        ("B Green.\nIt rolls.", "B"),
        ("B - green", "B"),
        ("B is correct", "B"),
        ("**B** is correct", "B"),
        ("B is the correct answer, not A.", "B"),
        ("A because it is red", "A"),
        ("The answer is A based on its colour", "A"),
        ("Option A is wrong, so the answer is B.", "B"),
        ("The answer is option B.", "B"),
        ("The options are A and B; my choice: B.", "B"),
        ("A red", "A"),
        ("A red square moves", None),
        ("Answer: A red square moves", None),
        ("The answer is A red square", None),
        ("A green square is the answer", None),
        ("answer a question", None),
        ("Answer A question", None),
        ("It has no answer. A, then B", None),
        ("Option A is not correct", None),
        ("A is wrong", None),
        ("A or B", None),
        ("A-level answers", None),
        ("Answer: E", None),
        ("Answers: B", None),
        ("a", "A"),
        ("b", "B"),
        ("b.", "B"),
        ("(b) green", "B"),
        ("The answer is b.", "B"),
        ("a red", "A"),
        ("a red square moves", None),
        ("the answer is a red square", None),
        ("b.c. is a date", None),
        ("A\u3002", "A"),
        ("A\uff0e", "A"),
        ("\uff21", "A"),
        ("\uff08B\uff09green", "B"),
        ("B\u3001green", "B"),
        ("\u300cB\u300d", "B"),
        ("\u201cB\u201d", "B"),
        ("\u2018B\u2019", "B"),
        ("B\u2019s", None),
    ],
)
def test_the_letter_that_an_answer_chooses(answer: str, letter: str | None) -> None:
    options = {"A": "red", "B": "green", "C": "blue", "D": "yellow"}
    assert chosen_letter(answer, options) == letter


@pytest.mark.parametrize(
    ("reference", "answer", "correct", "f1"),
    [
        ("A red square.", "a red square", True, 1.0),
        ("A red square.", "The red, square", True, 1.0),
        ("red square", "square red", False, 1.0),
        ("red square moves", "red", False, 0.5),
        ("red", "blue", False, 0.0),
        ("red", "", False, 0.0),
        ("A", "", False, 0.0),
        ("A", "The.", False, 0.0),
        ("A", "(a)", True, 1.0),
        ("the", "The.", True, 1.0),
        ("", "", False, 0.0),
        ("", " ", False, 0.0),
        ("+", "-", False, 0.0),
        ("+", "", False, 0.0),
        ("?", " ? ", True, 1.0),
        ("...", "the", False, 0.0),
        ("-5", "5", False, 0.0),
        ("-5", "\N{MINUS SIGN}5.", True, 1.0),
        ("-$5", "$5", False, 0.8),
        ("5", "+5", True, 1.0),
        ("3.5", "35", False, 0.0),
        ("3.5", "3 5", False, 0.0),
        (".5", "5", False, 0.0),
        ("-.5", ".5", False, 0.0),
        ("It is 3.5.", "it is 3.5", True, 1.0),
        ("3-5", "3 5", True, 1.0),
        ("It weighs 5.", "it weighs...5", True, 1.0),
        ("x--5", "x 5", True, 1.0),
        ("left-hand side", "Left hand side", True, 1.0),
        ("red square", "\u201cRed\u201d square\u2026", True, 1.0),
        ("red square", "red \u2014 square\u3002", True, 1.0),
        ("red, square", "\uff32\uff25\uff24\uff0csquare", True, 1.0),
        ("red", "`red`", True, 1.0),
        ("it isn't", "it isn\u2019t", True, 1.0),
        ("12:30", "\uff11\uff12\uff1a\uff13\uff10", True, 1.0),
        ("3.5", "\uff13\uff0e\uff15", True, 1.0),
        ("C++", "C", False, 0.5),
        ("C++", "c++.", True, 1.0),
        ("C++11", "C 11", False, 2 / 3),
        ("< 5", "> 5", False, 0.5),
        ("< 5", "<5", True, 1.0),
        ("< 5", "5", False, 2 / 3),
        ("$5", "5", False, 2 / 3),
        ("$5", "$ 5", True, 1.0),
        ("a $5 bill", "$5 bill", True, 1.0),
        ("A+", "B+", False, 0.5),
        ("A+", "+", False, 2 / 3),
        ("x=2", "x = 2", True, 1.0),
        ("a + b", "a+b", True, 1.0),
        ("a<b", "a < b", True, 1.0),
        ("a + b", "b", False, 0.5),
        ("the $5", "$5", True, 1.0),
        ("-5", "\u20135", True, 1.0),
        ("5", "\u20135", False, 0.0),
        ("3-5", "3\u20135", True, 1.0),
        ("102", "10\u00b2", False, 0.0),
        ("10^2", "10\u00b2", True, 1.0),
        ("20\u00b0C", "20 \u2103", True, 1.0),
        ("+", "\uff0b", True, 1.0),
    ],
)
def test_open_answers_by_their_words(
    reference: str, answer: str, correct: bool, f1: float
) -> None:
    score = score_answer("What?", reference, answer)
    assert (score.kind, score.correct) == ("open_ended", correct)
    assert score.f1 == pytest.approx(f1)


def test_an_article_may_be_part_of_a_choice() -> None:
    options = {"A": "red", "B": "a red square"}
    assert chosen_letter("A red square", options) == "B"
    assert chosen_letter("A red", options) == "A"


def test_a_text_of_one_letter_comes_before_a_small_letter() -> None:
    notes = {"A": "b", "B": "c", "C": "d"}
    assert [chosen_letter(said, notes) for said in ("b", "B", "(b)")] == ["A", "B", "A"]
    sums = {"A": "a + b", "B": "a - b", "C": "a+c"}
    assert chosen_letter("a + c", sums) == "C"


@pytest.mark.parametrize("between", [" ", "\n"])
def test_parts_of_a_question_are_no_choices(between: str) -> None:
    question = f"Answer both:{between}a) what colour?{between}b) what make?"
    said = "a) red{0}b) Toyota", "a) blue{0}b) Honda"
    reference, other = (each.format(between) for each in said)
    for answer in (reference, other):
        score = score_answer(question, reference, answer)
        assert score.kind == "open_ended"
        assert score.correct == (answer == reference)


def test_a_reference_that_chooses_nothing_is_open() -> None:
    question = f"Which?\n{COLOURS}"
    assert score_answer(question, "purple", "purple").kind == "open_ended"
    assert score_answer(question, "B", "green").correct
    assert score_answer("Which?\nA. red", "A", "A").kind == "open_ended"


@pytest.mark.parametrize(
    ("question", "texts"),
    [
        ("Which? Options: (A) red (B) blue (C) green", ("red", "blue", "green")),
        ("A. red B. blue", ("red", "blue")),
        ("Which?\nA) red, B) light blue, or C) green", ("red", "light blue", "green")),
        ("Which: A: red; B: blue\nAnswer.", ("red", "blue")),
        ("A. red B. blue\nC. green D. pink", ("red", "blue", "green", "pink")),
        ("See A. Is it (A) red or (B) blue", ("red", "blue")),
        ("Is it (A) and (B) or (C) not", ("and", "or", "not")),
        ("A. has vitamin B: good\nB. blue C. green", ("has vitamin B: good", None)),
        ("Which?\nA\uff0e red\nB\uff0elight blue", ("red", "light blue")),
        ("Which?\nA\uff1ared\nB\uff1ablue", ("red", "blue")),
        ("Which?\nA\u3001red\nB\u3001blue", ("red", "blue")),
        ("Which?\n\uff21\uff09red\n\uff22\uff09blue", ("red", "blue")),
        ("Which? A\u3001\u7ea2 B\u3001\u84dd", ("\u7ea2", "\u84dd")),
        ("\uff08A\uff09\u7ea2\uff08B\uff09\u84dd", ("\u7ea2", "\u84dd")),
        ("Which?\n(a) red\n(b) blue", ("red", "blue")),
        ("Which? a) red, b) blue or c) green", ("red", "blue", "green")),
        ("Is it (A) red with a: sign or (B) blue", ("red with a: sign", "blue")),
        ("A. red\nB. blue\nc. 1900", ("red", "blue")),
        ("(a) une ann\u00e9e. (b) un mois", ("une ann\u00e9e.", "un mois")),
    ],
)
def test_choices_may_share_a_line(question: str, texts: tuple[str | None, ...]) -> None:
    for letter, text in zip("ABCD", texts, strict=False):
        for said in (letter, text):
            for case in (str, str.lower) if said is not None else ():
                score = score_answer(question, letter, case(said))
                assert (score.kind, score.correct) == ("multiple_choice", True)
        for said in ("", "The.", "E", *{"A", "B"} - {letter}):
            score = score_answer(question, letter, said)
            assert (score.kind, score.correct) == ("multiple_choice", False)


@pytest.mark.parametrize(
    "question",
    [
        "Which? (A) red",
        "Which? (B) red (C) blue",
        "Which? (A) red (C) blue",
        "Which? (A)red (B)blue",
        "Who was in the U.S.A. in part B. Who?",
        "Which? (a) red",
        "Which? (a)red (b)blue",
        "Is it (A) red or (b) blue",
        "Who has A\u3001B\u3001C?",
    ],
)
def test_letters_out_of_sequence_are_no_choices(question: str) -> None:
    assert score_answer(question, "A", "A").kind == "open_ended"


def test_choices_may_differ_in_a_sign_alone() -> None:
    numbers, signs = "Which?\nA. 3\nB. -3\n", "Which?\nA. +\nB. -\n"
    for question, texts in ((numbers, ("3", "-3")), (signs, ("+", "-"))):
        for letter, text in zip("AB", texts, strict=True):
            for other in "AB":
                score = score_answer(question, other, text)
                assert score.kind == "multiple_choice"
                assert score.correct == (letter == other)
            assert score_answer(question, letter, f"{letter} {text}").correct
    assert not score_answer(numbers, "A", "A -3").correct
    assert not score_answer(signs, "A", "").correct


def test_what_is_asked_lies_where_ranks_of_all_nodes_see_it(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = list[Path]()

    def plan(*given: Any) -> Any:
        folders.append(given[-1])
        return plan_questions(*given)

    plan_questions = recipe.plan_questions
    monkeypatch.setattr(recipe, "plan_questions", plan)
    output = tmp_path / "scores" / "evaluation.json"
    recipe.evaluate(
        recipe.Options(
            checkpoint=str(trained / "run" / "model-60"),
            data=str(trained / "clips" / "held_out.jsonl"),
            output=output,
        )
    )
    assert [folder.parent for folder in folders] == [output.parent]
    assert list(output.parent.iterdir()) == [output]
