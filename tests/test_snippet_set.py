"""pipeline/retrieval/snippet_set.py: Kotlin with repository context."""
import json
from pathlib import Path
from types import SimpleNamespace

import datasets
import infilling_runs
import pytest
import tiny_models
from evaluation_runs import arguments, contexts, make_other_tokenizer, prediction_files, prompter, run_stage
from repository_runs import save_repository
from repository_runs import source as source_text

import benchmarking
from pipeline.data.datasets import load_files
from pipeline.evaluation.baselines import lines_behind
from pipeline.fim.fim_set import choose_formats, infilling_task
from pipeline.model.model_source import ModelSource
from pipeline.model.tokenizers import encode_prompts
from pipeline.prompts.fim_formats import find_format
from pipeline.prompts.repository_form import COMMENTED, MANIFEST_ENTRY
from pipeline.retrieval.snippet_cache import RepositoryFiles
from pipeline.retrieval.snippet_set import WITHOUT, choose_form, repository_task, without_answers
from pipeline.tasks.completion_set import kotlin_task
from pipeline.tasks.task import Task

pytestmark = pytest.mark.usefixtures("one_thread", "short_methods")
SET = "Kotlin, 60 tokens of context, 400 tokens of repository context"


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with test completions that stand in train."""
    return save_repository(tmp_path_factory.mktemp("repository") / "data", copied=True)


def tasks_of(port: Path, folder: Path, tokens: int = 400) -> tuple[Task, Task]:
    """Return the set without repository context and the one with it."""
    tokenizer = tiny_models.make_tokenizer()
    plain = kotlin_task(str(port), 0, 0, 12, 60, tokenizer)
    return plain, repository_task(plain, str(port), tokens, COMMENTED, tokenizer, folder)


def test_snippets_and_path_precede_the_same_context(port: Path, tmp_path: Path) -> None:
    """The context differs from that of the plain set, snippets are of the test's own files, or there are too
    many tokens."""
    tokenizer = tiny_models.make_tokenizer()
    plain, task = tasks_of(port, tmp_path)
    train = set(datasets.load_from_disk(str(port / "files"))["train"]["path"])
    ids_of_contexts = encode_prompts(tokenizer, contexts(plain, tokenizer))
    assert prompter(plain, tokenizer).prompts(plain.places()) == ids_of_contexts
    for context, ids, example in zip(ids_of_contexts, prompter(task, tokenizer).prompts(task.places()),
                                     task.examples, strict=True):
        assert ids[-len(context):] == context
        before = tokenizer.decode(ids[:-len(context)])
        assert 0 < len(ids) - len(context) <= 400
        assert before.endswith(f"// {example.place.path}\n")
        assert example.place.path.startswith("src/test/")
        assert example.prompt == before + tokenizer.decode(context)
        assert example.place.snippets
        assert {snippet.path for snippet in example.place.snippets} <= train
        assert example.place.snippets[0].text.strip() in example.best_snippet
        name = example.reference.split("val ")[1][:4]
        assert name in example.place.snippets[0].text  # it is about the same thing
    assert [e.id for e in plain.examples] == [e.id for e in task.examples]
    assert plain.name == task.twin
    assert "repository" not in plain.settings
    assert task.settings["repository"] == "400 tokens of repository context, paths as comments"


def test_snippets_are_tokenized_with_each_models_tokenizer(port: Path, tmp_path: Path) -> None:
    """A model with another tokenizer gets numbers that mean something else to it, or too many."""
    other = make_other_tokenizer()
    plain, task = tasks_of(port, tmp_path)
    for ids, context, example in zip(prompter(task, other).prompts(task.places()), contexts(plain, other),
                                     task.examples, strict=True):
        text = other.decode(ids)
        assert text.endswith(f"// {example.place.path}\n{context}")
        assert len(ids) <= 400 + len(other(context)["input_ids"])


def test_answers_in_the_pieces_are_found(port: Path, tmp_path: Path) -> None:
    """A table shows how well a model copies, and nobody knows how often it could."""
    _, task = tasks_of(port, tmp_path)
    test = datasets.load_from_disk(str(port / "files"))["test"]
    copied = {test[0]["path"]}
    inside = [example for example in task.examples if example.in_snippets]
    assert inside
    assert {example.place.path for example in inside} == copied
    for example in inside:
        assert " ".join(example.completion.split()) in " ".join(example.prompt.split())
    [(name, left)] = task.parts.items()
    assert name == f"{SET}, {WITHOUT}"
    rest = [task.examples[i] for i in left]
    assert len(rest) == len(task.examples) - len(inside)
    assert not any(example.in_snippets for example in rest)
    assert without_answers("Kotlin", rest) == without_answers("Kotlin", inside) == {}


@pytest.mark.parametrize("marks", [infilling_runs.MARKS, infilling_runs.UNUSED])
def test_snippets_precede_the_fim_tokens(port: Path, tmp_path: Path, marks: tuple[str, ...]) -> None:
    """Of snippets and the text after the cursor, a prompt has only one, or the snippets stand between the FIM
    tokens, as if they were of the file."""
    tokenizer = infilling_runs.with_tokens(*marks)
    models = [ModelSource("base", "1"), ModelSource("tuned", "2")]
    given = list(marks) if marks is infilling_runs.UNUSED else None
    manifest = {"infilling": find_format(tokenizer, "", None, given).described()}
    formats = choose_formats(models, [tokenizer, tokenizer], manifest)
    plain = kotlin_task(str(port), 0, 0, 12, 60, tokenizer)
    with_snippets = repository_task(plain, str(port), 400, COMMENTED, tokenizer, tmp_path)
    middle, both = (infilling_task(task, 20, formats) for task in (plain, with_snippets))
    assert (middle.name, both.name, both.twin, middle.twin) == (
        "Kotlin, infilling", "Kotlin, infilling, 400 tokens of repository context", "Kotlin, infilling", "")
    assert [*both.parts] == [f"{both.name}, {WITHOUT}"]
    assert all(example.ends for example in both.examples)
    assert [form is None for form in formats] == [marks is infilling_runs.UNUSED, False]
    for form in formats:
        rows = [prompter(task, tokenizer, form).prompts(task.places())
                for task in (middle, both, with_snippets)]
        for alone, ids, example, own in zip(rows[0], rows[1], both.examples, rows[2], strict=True):
            assert ids[-len(alone):] == alone
            before = tokenizer.decode(ids[:-len(alone)])
            assert before.endswith(f"// {example.place.path}\n")
            assert tokenizer.decode(own).startswith(before)
            assert not {*marks} & {*tokenizer.convert_ids_to_tokens(ids[:-len(alone)])}
            # the base was not trained with tokens that were given by hand
            marked = ids[-len(alone)] == tokenizer.convert_tokens_to_ids(marks[0])
            assert marked is (form is not None)


def test_a_run_with_snippets(port: Path, folders: SimpleNamespace, tmp_path: Path,
                           capsys: pytest.CaptureFixture) -> None:
    """The gain of the snippets, how many answers they hold, or the baseline that copies from them is
    computed and shown nowhere; or a second run looks for everything again."""
    own = SimpleNamespace(**vars(folders) | {"data": port})
    options = ("--repository_tokens", 400, "--context_tokens", 60, "--sample", 12, "--baselines")
    metrics = run_stage(own, tmp_path / "results", *options)
    printed = capsys.readouterr()
    assert "was not trained with repository context" in printed.err
    assert list(metrics["sets"])[1:3] == ["Kotlin, 60 tokens of context", SET]
    entry = metrics["sets"][SET]
    plain = metrics["sets"]["Kotlin, 60 tokens of context"]
    for model in ("base", "fine_tuned"):
        cell = entry["gain"][model]["loss, nats a token"]
        assert cell["without"] == plain["scores"]["loss, nats a token"][model]
        assert cell["with"] == entry["scores"]["loss, nats a token"][model]
        assert cell["difference"] == pytest.approx(cell["with"] - cell["without"], abs=1e-3)
        assert 0 < cell["p"] <= 1
    assert "lines behind the best piece's most similar line" in entry["baselines"]
    assert "lines behind the best piece's most similar line" not in plain["baselines"]
    report = (tmp_path / "results" / "report.md").read_text()
    table = (tmp_path / "results" / "table.md").read_text()
    for text in (printed.out, table, report):
        assert f"{entry['in_snippets']} of 12 examples the completion stands verbatim" in text
        assert "without pieces" in text
    assert "// src/train/File" in report
    names = [file.name for file in prediction_files(tmp_path / "results")]
    assert sum(".kotlin-60-repository-400." in name for name in names) == 2
    kept = port.with_name(f"{port.name}.pieces.json")
    before = kept.read_bytes()
    whole = RepositoryFiles(load_files(str(port))["train"], "port")
    assert json.loads(before)["header"]["files_hash"] == whole.files_hash
    benchmarking.main(arguments(own, tmp_path / "results", "--batch_size", 3, *options))
    assert "12 of 12 examples found" in capsys.readouterr().err
    assert kept.read_bytes() == before


def test_the_form_is_that_of_training(capsys: pytest.CaptureFixture) -> None:
    """A model is prompted in another form than it was trained with."""
    plain = tiny_models.make_tokenizer()
    assert choose_form({"adapter_manifest": {MANIFEST_ENTRY: COMMENTED._asdict()}}, "m",
                       [plain, plain]) == COMMENTED
    assert capsys.readouterr().err == ""
    assert choose_form(None, "m", [plain, plain]) == COMMENTED
    assert "m was not trained" in capsys.readouterr().err


def test_without_whole_files_there_are_no_snippets(folders: SimpleNamespace, tmp_path: Path,
                                                 capsys: pytest.CaptureFixture) -> None:
    """A data set of an older version ends in a traceback."""
    plain = kotlin_task(str(folders.data), 0, 0, 12)
    assert repository_task(plain, str(folders.data), 100, COMMENTED, tiny_models.make_tokenizer(),
                           tmp_path) is None
    assert "holds no whole files; not evaluated with repository context" in capsys.readouterr().err


@pytest.mark.parametrize(("piece", "prompt", "number", "expected"), [
    ("a\nfun x() {\n    one()\n}\nb\n", "fun y() {\n", 2, "    one()\n}"),
    ("a\n\nb\n", "zzz\n\n", 3, "b"), ("", "a", 2, ""), ("a", "", 2, ""), ("a", "a", 2, ""),
    ("".join(f"line {i}\n" for i in range(40)) + "last", "last", 1, "line 1")])
def test_the_lines_behind_the_most_similar(piece: str, prompt: str, number: int, expected: str) -> None:
    """The baseline that a model has to beat is weaker than what copying from the piece would give."""
    assert lines_behind(piece, prompt, number) == expected


def test_files_differ_but_are_about_the_same() -> None:
    """The tests above would show nothing."""
    assert source_text(1) != source_text(9)
    assert source_text(1)[:8] == source_text(9)[:8]
