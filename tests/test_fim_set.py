"""pipeline/fim/fim_set.py: the set "Kotlin, infilling", and each model's FIM format."""
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import infilling_runs
import pytest
import tiny_models
from evaluation_runs import predictions, prompter, run_stage, with_files
from infilling_runs import MARKS, UNUSED

from pipeline.evaluation.sets import fit_budgets
from pipeline.fim.fim_set import choose_formats, infilling_task
from pipeline.model.model_source import ModelSource
from pipeline.prompts.contexts import first_lines
from pipeline.prompts.fim_formats import find_format
from pipeline.tasks.completion_set import kotlin_task

pytestmark = pytest.mark.usefixtures("one_thread", "short_methods")

FAMILY, PLAIN, BY_HAND = (infilling_runs.with_tokens(*tokens) for tokens in (MARKS, ("<x>",), UNUSED))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data set with whole files, of three pairs each."""
    return tiny_models.save_dataset(tmp_path_factory.mktemp("data") / "data", chunk_tokens=12, files=True,
                                    pairs_per_file=3)


def sources() -> list[ModelSource]:
    return [ModelSource("base", "1"), ModelSource("tuned", "2")]


def manifest(order: str = "psm", tokens: Any = UNUSED, tokenizer: Any = BY_HAND) -> dict[str, Any]:
    return {"infilling": find_format(tokenizer, "", order, tokens and list(tokens)).described()}


@pytest.mark.parametrize(("tokenizers", "known", "orders", "said"), [
    ((FAMILY, FAMILY), None, ("psm", "psm"), ""),
    ((FAMILY, FAMILY), manifest("spm", None, FAMILY), ("spm", "spm"), ""),
    ((BY_HAND, BY_HAND), manifest(), (None, "psm"),
     "base was not trained with <unused0> <unused1> <unused2>; it is prompted with the text before the cut "
     "only"),
    ((BY_HAND, BY_HAND), {"adapter_manifest": manifest("spm")}, (None, "spm"), "base was not trained"),
    ((PLAIN, PLAIN), None, None, "is left out: tuned has no FIM tokens"),
    ((BY_HAND, BY_HAND), {}, None, "is left out: tuned has no FIM tokens"),
    ((PLAIN, FAMILY), None, None, "is left out: base has no FIM tokens")])
def test_each_models_format(tokenizers: tuple, known: dict | None, orders: tuple | None, said: str,
                            capsys: pytest.CaptureFixture) -> None:
    """A model is prompted in a format that it was not trained with, or the set is left out without a word."""
    formats = choose_formats(sources(), list(tokenizers), known)
    assert (formats and tuple(each and each.order for each in formats)) == orders
    assert said in capsys.readouterr().err
    if formats and formats[0]:
        assert formats[0].layout == formats[1].layout


@pytest.mark.parametrize("order", ["psm", "spm"])
def test_a_prompt_holds_the_text_around_the_completion(order: str, data: Path) -> None:
    """The prompt holds the answer, or text of another place; or its form is not that of training."""
    kotlin = kotlin_task(str(data), 0, 0, 12, 30, FAMILY)
    formats = choose_formats(sources(), [FAMILY, FAMILY], manifest(order, None, FAMILY))
    task = infilling_task(kotlin, 20, formats)
    own = prompter(task, FAMILY, formats[1])
    assert [e.id for e in task.examples] == [e.id for e in kotlin.examples]
    files = {}
    for row in tiny_models_files(data):
        files[row["source_line"]] = row["text"]
    p, s, m = FAMILY.convert_tokens_to_ids(list(MARKS[:3]))
    suffixes = 0
    for example, ids in zip(task.examples, own.prompts(task.places()), strict=True):
        assert ids[0] == p
        assert ids.count(s) == ids.count(m) == 1
        first, second = ids.index(s), ids.index(m)
        if order == "psm":
            assert ids[-1] == m
            before, after = ids[1:first], ids[first + 1:second]
        else:
            before, after = ids[second + 1:], ids[first + 1:second]
        assert len(before) <= 30
        assert len(after) <= 20
        around = FAMILY.decode(before) + example.completion + FAMILY.decode(after)
        assert around in files[example.group]
        suffixes += bool(after)
        assert bool(after) == bool(example.place.after)
    assert 0 < suffixes < len(task.examples)  # the last completion of a file has nothing after it
    assert all(example.ends for example in task.examples)
    assert own.stops >= {p, s, m, FAMILY.eos_token_id}


def tiny_models_files(data: Path) -> Any:
    from datasets import load_from_disk  # as in tiny_models

    return load_from_disk(str(data / "files"))["test"]


def test_by_hand_the_base_gets_the_text_before_alone(data: Path) -> None:
    """The base model is prompted with tokens that mean nothing to it, and the fine-tuned one looks better
    than it is."""
    formats = choose_formats(sources(), [BY_HAND, BY_HAND], manifest())
    kotlin = kotlin_task(str(data), 0, 0, 12, 30, BY_HAND)
    task = infilling_task(kotlin, 20, formats)
    plain = prompter(kotlin, BY_HAND).prompts(kotlin.places())
    base, tuned = (prompter(task, BY_HAND, form).prompts(task.places()) for form in formats)
    assert base == plain
    assert tuned != plain
    assert task.settings["base"] == "text before the cut"
    assert task.settings["fine-tuned"] == "psm with <unused0> <unused1> <unused2>"
    # a set without a suffix is prompted in plain text, whatever the model was trained with
    assert prompter(kotlin, BY_HAND, formats[1]).prompts(kotlin.places()) == plain


def test_a_short_context_keeps_the_marks(data: Path, monkeypatch: pytest.MonkeyPatch,
                                         capsys: pytest.CaptureFixture) -> None:
    """A prompt that is too long loses its beginning, which is the mark of the prefix."""
    models = sources()
    formats = choose_formats(models, [FAMILY, FAMILY], None)
    task = infilling_task(kotlin_task(str(data), 0, 0, 12, 512, FAMILY), 256, formats)
    monkeypatch.setattr("pipeline.evaluation.sets.context_length", lambda name, commit: 80)
    fit_budgets([task], models)
    assert (task.tokens.context, task.tokens.suffix) == (40, 20)
    assert "has room for 40 before the cut and 20 after the completion" in capsys.readouterr().err
    longest = max(map(len, prompter(task, FAMILY, formats[1]).prompts(task.places())))
    assert longest + task.max_new_tokens <= 80


def test_without_whole_files_there_is_no_suffix(folders: SimpleNamespace,
                                                     capsys: pytest.CaptureFixture) -> None:
    """A data set without files ends in a traceback."""
    assert infilling_task(kotlin_task(str(folders.data), 0, 0, 12), 20, (None, None)) is None
    assert "Kotlin, infilling is left out: the data set holds no whole files" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "a\nb\n", "fun f() {\n    val a = 1\n}\n" * 30, "x" * 400, "\n" * 50,
                                  " \U0001f600" * 60])
def test_the_first_lines_of_a_text(text: str) -> None:
    """The suffix has more tokens than the model was given room for, or ends within a line."""
    for tokens in (1, 7, 40):
        [found] = first_lines(FAMILY, [text], tokens)
        assert text.startswith(found)
        assert len(FAMILY(found)["input_ids"]) <= tokens + 1  # a token that was cut may be two
        assert found == text or found.endswith("\n") or "\n" not in found


def test_the_benchmark_evaluates_infilling(tmp_path: Path, folders: SimpleNamespace,
                                           capsys: pytest.CaptureFixture) -> None:
    """The set is not evaluated, not scored, or each run evaluates it anew."""
    models = [infilling_runs.save_model(tmp_path / name, *MARKS, seed=seed)
              for seed, name in enumerate(("base", "tuned"))]
    own = SimpleNamespace(**vars(with_files(folders, tmp_path / "data")) | dict(
        zip(("base", "merged"), models, strict=True)))
    flags = ("--context_tokens", 30, "--suffix_tokens", 20, "--repository_tokens", 40, "--sample", 4)
    metrics = run_stage(own, tmp_path / "results", *flags)
    kotlin, repository = "Kotlin, 30 tokens of context", "40 tokens of repository context"
    assert list(metrics["sets"])[1:] == [kotlin, f"{kotlin}, {repository}", "Kotlin, infilling",
                                         f"Kotlin, infilling, {repository}"]
    assert {"base", "fine_tuned"} == set(metrics["sets"][f"Kotlin, infilling, {repository}"]["gain"])
    entry = metrics["sets"]["Kotlin, infilling"]
    assert entry["reference_ended"] == 100
    assert "fine-tuned:psm with <|fim_prefix|> <|fim_suffix|> <|fim_middle|>" in entry["signature"]
    assert {"next line exact, %", "next line similarity", "edit similarity", "ended by itself, %",
            "loss, nats a token"} <= set(entry["scores"])
    files = [name for name in predictions(tmp_path / "results") if "kotlin-30-infilling." in name]
    assert len(files) == 2
    first = (tmp_path / "results" / "predictions" / files[0]).read_text().splitlines()[0]
    header = json.loads(first)["header"]
    assert header["fim"] == "psm with <|fim_prefix|> <|fim_suffix|> <|fim_middle|>"
    capsys.readouterr()
    again = run_stage(own, tmp_path / "results", *flags)
    assert again["sets"] == metrics["sets"]
    assert "on Kotlin, infilling: 4 of 4 examples found" in capsys.readouterr().err
