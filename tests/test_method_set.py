"""pipeline/methods/method_set.py: the set of methods in Kotlin, and the part with documentation."""
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import tiny_models
from evaluation_runs import contexts, predictions, run_stage, with_files

from pipeline.evaluation.comparison import train_split, with_parts
from pipeline.evaluation.rows import prediction_file
from pipeline.methods.block_end import block_end
from pipeline.methods.method_set import methods_task
from pipeline.run.errors import PipelineError
from pipeline.scoring.scores import PARSES
from pipeline.tasks.answers import ROLES, Answers, ModelOnSet

DOCUMENTED = "Kotlin methods, with KDoc"
FILE = '''package a

class A {
    val a = 1

    /**
     * Doc %d.
     */
    @B fun f(): Int {
        return "${"}"}".length
    }

    fun g() { f()
    }
}
'''


def save_methods(folder: Path, files: int = 12) -> list[tuple[str, str, str]]:
    """Save a data set of such files, with a test split alone, and return (before, head, body) of its
    methods."""
    texts = [FILE % number for number in range(files)]
    rows, found = [], []
    for line, text in enumerate(texts, start=1):
        first, document = text.index("\n\n    fun g"), text[text.index("/**"):text.index("*/") + 2]
        for start, opened, end, comment in (
                (text.index("@B"), text.index("Int {") + 5, first, document),
                (text.index("fun g"), text.index("g() {") + 5, len(text) - 3, "")):
            rows.append({"signature": text[start:opened], "docstring": comment, "body": text[opened:end],
                         "source_line": line, "start": start, "path": "a.kt"})
            first = text.index("/**") if comment else start
            found.append((text[:first], text[first:opened], text[opened:end]))
    pairs = [{"prompt": "package", "completion": " a", "source_line": 1, "start": 0}]
    for place, table in ((folder, pairs), (folder / "methods", rows),
                         (folder / "files", [{"text": text, "source_line": line}
                                             for line, text in enumerate(texts, start=1)])):
        datasets.DatasetDict({"test": datasets.Dataset.from_list(table)}).save_to_disk(str(place))
    return found


@pytest.mark.parametrize("tokens", [0, 12, 400])
def test_the_prompt_is_the_file_up_to_the_brace(tokens: int, tmp_path: Path) -> None:
    """A model is prompted without the documentation or with the answer, or the completion is not that of the
    file."""
    found, tokenizer = save_methods(tmp_path / "data"), tiny_models.make_tokenizer()
    task = methods_task(str(tmp_path / "data"), 0, 0, 0, tokens, tokenizer)
    assert (task.name, task.max_new_tokens, task.tokens.context) == ("Kotlin methods", 256, tokens)
    assert contexts(task, tokenizer) == [example.prompt for example in task.examples]
    for number, (example, (before, head, body)) in enumerate(zip(task.examples, found, strict=True)):
        assert (example.completion, example.group, example.ends) == (body, 1 + number // 2, True)
        assert example.prompt.endswith(head)
        context = example.prompt.removesuffix(head)
        assert before.endswith(context)
        if tokens:
            assert len(tokenizer(context)["input_ids"]) <= tokens
            assert (context == before) == (tokens == 400)
        else:
            assert context == "    "  # the indentation of its first line
        assert task.stop.end(body + "\n}\n") == len(body)
        assert example.reference == " ".join(body.split())
    assert [example.first_line for example in task.examples[:2]] == ['return "${"}"}".length', "f()"]
    assert task.source.texts.text(1)[:task.examples[0].cursor.offset].endswith("Int {")


def test_the_part_with_documentation(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Its scores are those of other examples; or scores are given of examples too few to say anything."""
    save_methods(tmp_path / "data")
    task = methods_task(str(tmp_path / "data"), 0, 0)
    assert task.parts == {DOCUMENTED: list(range(0, 24, 2))}
    answers = {ModelOnSet(role, task.name): Answers([f"{role} {i}" for i in range(24)], [True] * 24,
                                                    [(0.5, i) for i in range(24)]) for role in ROLES}
    whole, part = with_parts([task], answers)
    assert whole is task
    assert part.name == DOCUMENTED
    assert [example.id for example in part.examples] == [str(i) for i in range(0, 24, 2)]
    selected = answers[ModelOnSet("fine_tuned", DOCUMENTED)]
    assert selected == Answers([f"fine_tuned {i}" for i in range(0, 24, 2)], [True] * 12,
                               [(0.5, i) for i in range(0, 24, 2)])
    assert not methods_task(str(tmp_path / "data"), 6, 0).parts
    assert "have documentation, too few" in capsys.readouterr().err


def test_predictions_of_methods_have_files_of_their_own(folders: SimpleNamespace, tmp_path: Path) -> None:
    """Predictions of the methods and of the pairs with the same context are mistaken for each other."""
    own = with_files(folders, tmp_path / "data", methods=True)
    tokenizer = tiny_models.make_tokenizer()
    task = methods_task(str(own.data), 0, 0, 0, 40, tokenizer)
    file = prediction_file(tmp_path, SimpleNamespace(name="m"), task, {})
    assert file.name.startswith("m.kotlin-methods-40.")
    other = methods_task(str(own.data), 0, 0, 0, 20, tokenizer)
    assert other.settings != task.settings
    train = train_split(task, str(own.data))
    assert train[0]["prompt"].endswith("{")
    assert train[0]["completion"].endswith("}")


def test_methods_are_evaluated_and_scored(folders: SimpleNamespace, tmp_path: Path) -> None:
    """The set is left out of the results, its predictions go on after their brace, or a rerun makes them
    anew."""
    own = with_files(folders, tmp_path / "data", methods=True)
    metrics = run_stage(own, tmp_path / "results", "--context_tokens", 20, "--max_new_tokens", 24,
                        "--baselines")
    entry = metrics["sets"]["Kotlin methods"]
    assert entry["examples"] == 6
    assert "|prompt:20 tokens of context, KDoc, signature|stop:end of method|" in entry["signature"]
    assert "|budget:24|" in entry["signature"]
    assert (entry["reference_ended"], entry["reference_parses"]) == (100, 100)
    assert PARSES in entry["scores"]
    assert "most similar training completion" in entry["baselines"]
    rows = [row for file, rows in predictions(tmp_path / "results").items() if ".kotlin-methods-20." in file
            for row in rows[1:]]
    assert len(rows) == 12
    for row in rows:
        end = block_end(row["prediction"])
        assert end in (None, len(row["prediction"]))
        assert end is None or row["ended"]


def test_a_data_set_without_methods(folders: SimpleNamespace, tmp_path: Path,
                                    capsys: pytest.CaptureFixture) -> None:
    """An earlier data set cannot be benchmarked any more; or a method is evaluated that its file does
    not hold."""
    assert methods_task(str(folders.data), 0, 0) is None
    assert "holds no methods of its test split" in capsys.readouterr().err
    save_methods(tmp_path / "data")
    rows = datasets.load_from_disk(str(tmp_path / "data" / "methods"))["test"]
    moved = rows.map(lambda row: {"start": row["start"] + 1})
    datasets.DatasetDict({"test": moved}).save_to_disk(str(tmp_path / "moved" / "methods"))
    files = datasets.load_from_disk(str(tmp_path / "data" / "files"))
    files.save_to_disk(str(tmp_path / "moved" / "files"))
    with pytest.raises(PipelineError, match="method 0 of its test split is not in its file"):
        methods_task(str(tmp_path / "moved"), 0, 0)
