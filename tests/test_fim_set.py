"""pipeline/fim/fim_set.py: the set Kotlin, infilling, and who is asked it in which format."""
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import infilling_runs
import pytest
import tiny_models
from evaluation_runs import predictions, run_stage, with_files
from infilling_runs import MARKS, UNUSED

from pipeline.evaluation.sets import fit_budgets
from pipeline.fim.fim_set import choose_formats, infilling_task, task_of
from pipeline.model.model_source import ModelSource
from pipeline.prompts.contexts import first_lines
from pipeline.prompts.fim_formats import find_format
from pipeline.tasks.completion_set import kotlin_task
from pipeline.tasks.task import prompt_ids

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


@pytest.mark.parametrize(("tokenizers", "known", "asked", "formats", "said"), [
    ((FAMILY, FAMILY), None, True, ("psm", "psm"), ""),
    ((FAMILY, FAMILY), manifest("spm", None, FAMILY), True, ("spm", "spm"), ""),
    ((BY_HAND, BY_HAND), manifest(), True, (None, "psm"),
     "base was not taught <unused0> <unused1> <unused2>; it is asked with the text before the cut alone"),
    ((BY_HAND, BY_HAND), {"adapter_manifest": manifest("spm")}, True, (None, "spm"), "base was not taught"),
    ((PLAIN, PLAIN), None, False, (None, None), "is left out: tuned has no infilling tokens"),
    ((BY_HAND, BY_HAND), {}, False, (None, None), "is left out: tuned has no infilling tokens"),
    ((PLAIN, FAMILY), None, False, (None, "psm"), "is left out: base has no infilling tokens")])
def test_who_is_asked_and_how(tokenizers: tuple, known: dict | None, asked: bool, formats: tuple, said: str,
                              capsys: pytest.CaptureFixture) -> None:
    """A model is asked in a format that it was not taught, or the set is left out without a word."""
    models = sources()
    assert choose_formats(models, list(tokenizers), known) is asked
    assert tuple(model.infilling and model.infilling.order for model in models) == formats
    assert said in capsys.readouterr().err
    if asked and formats[0]:
        assert models[0].infilling.layout == models[1].infilling.layout


@pytest.mark.parametrize("order", ["psm", "spm"])
def test_a_prompt_holds_what_stands_around_the_completion(order: str, data: Path) -> None:
    """The answer stands in the prompt, or text of another place; or the middle is asked in another form than
    training writes."""
    kotlin = kotlin_task(str(data), 0, 0, 12, 30, FAMILY)
    models = sources()
    choose_formats(models, [FAMILY, FAMILY], manifest(order, None, FAMILY))
    task = task_of(infilling_task(kotlin, 20, models), models[1])
    assert [e.id for e in task.examples] == [e.id for e in kotlin.examples]
    files = {}
    for row in tiny_models_files(data):
        files[row["source_line"]] = row["text"]
    p, s, m = FAMILY.convert_tokens_to_ids(list(MARKS[:3]))
    suffixes = 0
    for example, ids in zip(task.examples, prompt_ids(task, FAMILY), strict=True):
        assert ids[0] == p
        assert ids.count(s) == ids.count(m) == 1
        first, second = ids.index(s), ids.index(m)
        if order == "psm":
            assert ids[-1] == m
            before, behind = ids[1:first], ids[first + 1:second]
        else:
            before, behind = ids[second + 1:], ids[first + 1:second]
        assert len(before) <= 30
        assert len(behind) <= 20
        around = FAMILY.decode(before) + example.completion + FAMILY.decode(behind)
        assert around in files[example.group]
        suffixes += bool(behind)
        assert bool(behind) == bool(example.after)
    assert 0 < suffixes < len(task.examples)  # the last completion of a file has nothing behind it
    assert all(example.ends for example in task.examples)
    assert task.stops >= {p, s, m, FAMILY.eos_token_id}


def tiny_models_files(data: Path) -> Any:
    from datasets import load_from_disk  # as in tiny_models

    return load_from_disk(str(data / "files"))["test"]


def test_by_hand_the_base_gets_the_text_before_alone(data: Path) -> None:
    """The base model is asked with marks that mean nothing to it, and the fine-tuned one looks better than it
    is."""
    models = sources()
    choose_formats(models, [BY_HAND, BY_HAND], manifest())
    kotlin = kotlin_task(str(data), 0, 0, 12, 30, BY_HAND)
    task = infilling_task(kotlin, 20, models)
    assert prompt_ids(task_of(task, models[0]), BY_HAND) == prompt_ids(kotlin, BY_HAND)
    assert prompt_ids(task_of(task, models[1]), BY_HAND) != prompt_ids(kotlin, BY_HAND)
    assert task.settings["base"] == "the text before the cut alone"
    assert task.settings["fine-tuned"] == "psm with <unused0> <unused1> <unused2>"
    assert task_of(kotlin, models[1]) is kotlin


def test_a_short_context_keeps_the_marks(data: Path, monkeypatch: pytest.MonkeyPatch,
                                         capsys: pytest.CaptureFixture) -> None:
    """A prompt that is too long loses its beginning, which is the mark of the prefix."""
    models = sources()
    choose_formats(models, [FAMILY, FAMILY], None)
    task = infilling_task(kotlin_task(str(data), 0, 0, 12, 512, FAMILY), 256, models)
    monkeypatch.setattr("pipeline.evaluation.sets.context_length", lambda name, commit: 80)
    fit_budgets([task], models)
    assert (task.context_tokens, task.suffix_tokens) == (40, 20)
    assert "has room for 40 before the cut and 20 behind" in capsys.readouterr().err
    longest = max(map(len, prompt_ids(task_of(task, models[1]), FAMILY)))
    assert longest + task.max_new_tokens <= 80


def test_without_whole_files_there_is_nothing_behind(folders: SimpleNamespace,
                                                     capsys: pytest.CaptureFixture) -> None:
    """A data set without files ends in a traceback."""
    assert infilling_task(kotlin_task(str(folders.data), 0, 0, 12), 20, sources()) is None
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


def test_the_benchmark_asks_for_the_middle(tmp_path: Path, folders: SimpleNamespace,
                                           capsys: pytest.CaptureFixture) -> None:
    """The set is not asked, not scored, or each run asks it anew."""
    models = [infilling_runs.save_model(tmp_path / name, *MARKS, seed=seed)
              for seed, name in enumerate(("base", "tuned"))]
    asked = SimpleNamespace(**vars(with_files(folders, tmp_path / "data")) | dict(
        zip(("base", "merged"), models, strict=True)))
    flags = ("--context_tokens", 30, "--suffix_tokens", 20, "--repository_tokens", 40, "--sample", 4)
    metrics = run_stage(asked, tmp_path / "results", *flags)
    kotlin, pieces = "Kotlin, 30 tokens of context", "40 of the repository"
    assert list(metrics["sets"])[1:] == [kotlin, f"{kotlin}, {pieces}", "Kotlin, infilling",
                                         f"Kotlin, infilling, {pieces}"]
    assert {"base", "fine_tuned"} == set(metrics["sets"][f"Kotlin, infilling, {pieces}"]["gain"])
    entry = metrics["sets"]["Kotlin, infilling"]
    assert entry["reference_ended"] == 100
    assert "fine-tuned:psm with <|fim_prefix|> <|fim_suffix|> <|fim_middle|>" in entry["signature"]
    assert {"next line exact, %", "next line similarity", "edit similarity", "ended by itself, %",
            "loss, nats a token"} <= set(entry["scores"])
    files = [name for name in predictions(tmp_path / "results") if "kotlin-30-infilling." in name]
    assert len(files) == 2
    first = (tmp_path / "results" / "predictions" / files[0]).read_text().splitlines()[0]
    header = json.loads(first)["header"]
    assert header["asked"] == "psm with <|fim_prefix|> <|fim_suffix|> <|fim_middle|>"
    capsys.readouterr()
    again = run_stage(asked, tmp_path / "results", *flags)
    assert again["sets"] == metrics["sets"]
    assert "on Kotlin, infilling: 4 of 4 examples found" in capsys.readouterr().err
