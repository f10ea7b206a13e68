"""pipeline/tasks/task.py: what is drawn of a set, and the budget of its predictions."""
import json
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import tiny_models
from evaluation_runs import contexts, make_other_tokenizer, with_files
from hub_server import Hub

from pipeline.evaluation.comparison import train_split
from pipeline.evaluation.rows import prediction_file
from pipeline.fim.fim_set import infilling_task
from pipeline.methods.method_set import methods_task
from pipeline.model.model_source import ModelSource
from pipeline.prompts.contexts import CHARACTERS_PER_TOKEN
from pipeline.prompts.repository_form import COMMENTED
from pipeline.retrieval.snippet_set import repository_task
from pipeline.tasks import completion_set
from pipeline.tasks.codexglue import codexglue_task
from pipeline.tasks.completion_set import kotlin_task

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.usefixtures("short_methods")
def test_sample_and_budget_follow_the_flags(folders: SimpleNamespace) -> None:
    """--sample takes the first examples, or --max_new_tokens is ignored."""
    ids = [[e.id for e in codexglue_task(folders.codexglue, 3, seed).examples] for seed in range(6)]
    assert all(len(set(drawn)) == 3 for drawn in ids)
    assert len({tuple(drawn) for drawn in ids}) > 2
    assert ids[1] == [e.id for e in codexglue_task(folders.codexglue, 3, 1).examples]
    assert [e.id for e in codexglue_task(folders.codexglue, 0, 1).examples] == [f"row{i}" for i in range(6)]
    assert kotlin_task(str(folders.data), 0, 0, 7).max_new_tokens == 7
    assert kotlin_task(str(folders.data), 0, 0, 0).max_new_tokens == 12
    assert [e.group for e in kotlin_task(str(folders.data), 0, 0, 0).examples] == [1, 1, 2, 2, 3, 3]
    # literals that are common are so by the whole file, whatever the sample
    found = {codexglue_task(folders.codexglue, 1, seed).normalize("'a0' 'a1' 'a2'") for seed in range(6)}
    assert found == {"'a0' 'a1' ''"}


@pytest.mark.parametrize(("extension", "language"), [
    (".rs", "Rust"), (".cs", "C#"), (".hpp", "C++"), ("", "Code"), (".py", "Python")])
def test_sets_are_called_by_their_language(extension: str, language: str, tmp_path: Path) -> None:
    """The table, the chart and the card of a team's own code base speak of Kotlin, of which it holds none."""
    data = str(tiny_models.save_dataset(tmp_path / "data", files=True, methods=True, extension=extension))
    tokenizer, model = tiny_models.make_tokenizer(), ModelSource("base", "1")
    tasks = [kotlin_task(data, 4, 0, 9, context, tokenizer) for context in (0, 40)]
    tasks.append(repository_task(tasks[1], data, 60, COMMENTED, tokenizer, tmp_path))
    tasks += [infilling_task(tasks[2], 20, (None, None)), methods_task(data, 4, 0)]
    context, repository = "40 tokens of context", "60 tokens of repository context"
    assert [task.name for task in tasks] == [
        language, f"{language}, {context}", f"{language}, {context}, {repository}",
        f"{language}, infilling, {repository}", f"{language} methods"]
    assert tasks[3].twin == f"{language}, infilling"
    assert len({prediction_file(tmp_path, model, task, {}).name for task in tasks}) == 5
    columns = ["prompt"] * 4 + ["docstring"]  # of pairs and of methods
    assert all(name in train_split(task, data).column_names
               for task, name in zip(tasks, columns, strict=True))


def save_cut_anywhere(folder: Path, files: int = 5) -> dict[int, str]:
    """Save a test split whose pairs are cut within lines too, with its whole files; return the files' texts
    by the line of the raw file."""
    draw, rows, texts = random.Random(3), [], {}
    for line in range(1, files + 1):
        texts[line] = "".join(map("".join, tiny_models.examples(12, seed=line)))
        places = sorted(draw.sample(range(len(texts[line])), 6))
        rows += [{"prompt": texts[line][start:cut], "completion": texts[line][cut:end], "source_line": line,
                  "start": start}
                 for start, cut, end in zip(places, places[1:], [*places[2:-1], len(texts[line])],
                                            strict=False)]
    datasets.DatasetDict({"test": datasets.Dataset.from_list(rows)}).save_to_disk(str(folder))
    whole = [{"text": text, "source_line": line} for line, text in texts.items()]
    datasets.DatasetDict({"test": datasets.Dataset.from_list(whole)}).save_to_disk(str(folder / "files"))
    return texts


@pytest.mark.parametrize("tokens", [1, 7, 40, 200, 10_000])
def test_a_context_is_the_end_of_the_file_before_the_cut(tokens: int, tmp_path: Path) -> None:
    """The prompt is text of another place, holds the answer, has too many tokens, or begins within a line
    although a whole one fits."""
    texts, tokenizer = save_cut_anywhere(tmp_path / "data"), tiny_models.make_tokenizer()
    plain = kotlin_task(str(tmp_path / "data"), 0, 0, 9)
    task = kotlin_task(str(tmp_path / "data"), 0, 0, 9, tokens, tokenizer)
    assert (plain.name, task.name) == ("Kotlin", f"Kotlin, {tokens} tokens of context")
    assert (plain.tokens.context, task.tokens.context) == (0, tokens)
    rows = list(datasets.load_from_disk(str(tmp_path / "data"))["test"])
    assert len(task.examples) == len(rows) == 20
    assert contexts(plain, tokenizer) == [row["prompt"] for row in rows]
    assert contexts(task, tokenizer) == [example.prompt for example in task.examples]
    for one, example, row in zip(plain.examples, task.examples, rows, strict=True):
        assert (one.id, one.reference, one.first_line, one.group, one.completion, one.ends) == (
            example.id, example.reference, example.first_line, example.group, example.completion,
            example.ends)
        assert one.prompt == example.chunk == row["prompt"]
        text, cut = texts[row["source_line"]], row["start"] + len(row["prompt"])
        assert text[:cut].endswith(example.prompt)
        assert example.ends == (cut + len(row["completion"]) == len(text))
        count = len(tokenizer(example.prompt)["input_ids"])
        assert count <= tokens
        begin = cut - len(example.prompt)
        if begin and "\n" in text[:cut - 1]:
            before = text.rindex("\n", 0, begin - 1) + 1 if "\n" in text[:begin - 1] else 0
            if text[begin - 1] == "\n":  # whole lines: one more does not fit
                assert len(tokenizer(text[before:cut])["input_ids"]) > tokens
            else:  # not even the last line fits
                line = text[text.rindex("\n", 0, cut - 1) + 1:cut]
                assert len(tokenizer(line)["input_ids"]) > tokens
    assert sum(example.ends for example in task.examples) == 5
    assert (tokens < 10_000) == any(e.prompt != texts[r["source_line"]][:r["start"] + len(r["prompt"])]
                                    for e, r in zip(task.examples, rows, strict=True))


def test_the_end_of_a_long_file_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set of long files is held in memory whole; or what is kept of them is too short for the context."""
    save_cut_anywhere(tmp_path / "data")
    whole = [e.prompt for e in kotlin_task(str(tmp_path / "data"), 0, 0, 9, 40,
                                           tiny_models.make_tokenizer()).examples]
    monkeypatch.setattr(completion_set, "CHARACTERS_KEPT", 2 * CHARACTERS_PER_TOKEN)
    kept = kotlin_task(str(tmp_path / "data"), 0, 0, 9, 40, tiny_models.make_tokenizer())
    assert max(len(example.place.before) for example in kept.examples) == 2 * CHARACTERS_PER_TOKEN * 40
    assert [example.prompt for example in kept.examples] == whole


def test_each_tokenizer_counts_its_own_context(tmp_path: Path) -> None:
    """A model whose tokenizer makes more tokens of a text gets a longer prompt than it was to have."""
    save_cut_anywhere(tmp_path / "data")
    task = kotlin_task(str(tmp_path / "data"), 0, 0, 9, 40, tiny_models.make_tokenizer())
    found, other = contexts(task, make_other_tokenizer()), make_other_tokenizer()
    assert max(len(other(prompt)["input_ids"]) for prompt in found) <= 40
    assert all(example.prompt.endswith(prompt) for example, prompt in zip(task.examples, found, strict=True))
    assert sum(len(prompt) for prompt in found) < 0.9 * sum(len(e.prompt) for e in task.examples)


def test_other_files_are_another_set(folders: SimpleNamespace, tmp_path: Path) -> None:
    """Predictions of an earlier run are reused for other contexts, where the pairs are the same
    and the files around them are not."""
    own, tokenizer = with_files(folders, tmp_path / "data"), tiny_models.make_tokenizer()
    before = kotlin_task(str(own.data), 0, 0, 9, 40, tokenizer).settings
    files = datasets.load_from_disk(str(own.data / "files"))
    files = datasets.DatasetDict({split: rows.map(lambda row: {"text": "// new\n" + row["text"]})
                                  for split, rows in files.items()})
    data = datasets.load_from_disk(str(own.data))
    data = datasets.DatasetDict({split: rows.map(lambda row: {"start": row["start"] + len("// new\n")})
                                 for split, rows in data.items()})
    data.save_to_disk(str(tmp_path / "changed"))
    files.save_to_disk(str(tmp_path / "changed" / "files"))
    after = kotlin_task(str(tmp_path / "changed"), 0, 0, 9, 40, tokenizer).settings
    assert before["data_hash"] == after["data_hash"]
    assert before["context_hash"] != after["context_hash"]


@pytest.mark.parametrize(("change", "known"), [("none", True), ("no files", False), ("no start", False),
                                               ("other text", False)])
def test_pairs_that_no_file_holds_have_no_context(change: str, known: bool, folders: SimpleNamespace,
                                                  tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A pair gets the context of another place; or a data set without files is said to have none that ends
    there."""
    own, tokenizer = with_files(folders, tmp_path / "data"), tiny_models.make_tokenizer()
    data, files = (datasets.load_from_disk(str(folder)) for folder in (own.data, own.data / "files"))
    if change == "no start":
        data = data.remove_columns("start")
    elif change == "other text":
        files["test"] = files["test"].map(lambda row: {"text": " " + row["text"]})
    data.save_to_disk(str(tmp_path / "changed"))
    if change != "no files":
        files.save_to_disk(str(tmp_path / "changed" / "files"))
    capsys.readouterr()
    ends = [e.ends for e in kotlin_task(str(tmp_path / "changed"), 0, 0, 9).examples]
    assert ends == [known and i % 3 == 2 if known else None for i in range(6)]
    assert not capsys.readouterr().err
    task = kotlin_task(str(tmp_path / "changed"), 0, 0, 9, 40, tokenizer)
    assert (task is not None) == known
    assert ("holds no whole files" in capsys.readouterr().err) != known


@pytest.mark.parametrize(("manifest", "budget"), [
    ({"arguments": {"chunk_tokens": 37}, "outputs": {}}, 37), (None, 100)])
def test_budget_of_a_hub_data_set(manifest: dict[str, Any] | None, budget: int, folders: SimpleNamespace,
                                  tmp_path: Path) -> None:
    """A hub data set of long chunks gets the budget of short ones, without a note."""
    name = f"tester/data{budget}"
    datasets.load_from_disk(str(folders.data))["test"].to_parquet(tmp_path / "test.parquet")
    files = {"data/test.parquet": (tmp_path / "test.parquet").read_bytes(),
             "README.md": b"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: test\n"
                          b"    path: data/test.parquet\n---\n"}
    if manifest:
        files["manifest.json"] = json.dumps(manifest).encode()
    code = ("import sys\nfrom pipeline.tasks.completion_set import kotlin_task\n"
            "task = kotlin_task(sys.argv[1], 0, 0, 0)\n"
            "print(task.max_new_tokens, task.source.dataset, task.settings['data_hash'])")
    with Hub() as hub:
        hub.add(name, files, kind="dataset")
        done = subprocess.run([sys.executable, "-c", code, name], cwd=ROOT, capture_output=True, text=True,
                              env=hub.environment(tmp_path / "hf"), timeout=110)
    assert done.returncode == 0, done.stderr
    local = kotlin_task(str(folders.data), 0, 0, 0)
    # the same rows: predictions are found again
    assert done.stdout.split() == [str(budget), name, local.settings["data_hash"]]
    assert ("no manifest gives the length of its chunks" in done.stderr) == (manifest is None)
