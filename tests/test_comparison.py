"""pipeline/evaluation/comparison.py: which models are loaded, and when; and models with other tokenizers."""
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_models
from evaluation_runs import (
    arguments,
    contexts,
    make_other_tokenizer,
    predictions,
    run_stage,
    save_other_model,
    with_files,
)
from transformers import AutoModelForCausalLM

import benchmarking
from pipeline.data.datasets import load_examples
from pipeline.decoding.greedy import generate_batch
from pipeline.evaluation import comparison
from pipeline.model.tokenizers import encode_prompts, tokenizer_identity
from pipeline.scoring.scores import LENGTH, LOSS, LOSS_BYTE, PARSES, Scores
from pipeline.tasks.codexglue import codexglue_task
from pipeline.tasks.completion_set import kotlin_task

pytestmark = pytest.mark.usefixtures("one_thread", "short_methods")


def test_another_model_costs_one_model(folders: SimpleNamespace, tmp_path: Path,
                                       monkeypatch: pytest.MonkeyPatch,
                                       capsys: pytest.CaptureFixture) -> None:
    """The base model predicts everything again for each repository, or both models are in memory together."""
    loaded: list[tuple[str, Any]] = []
    original = comparison.load_model

    def load(source: Any, base: Any, precision: str) -> Any:
        assert all(model() is None for _, model in loaded)
        model = original(source, base, precision)
        loaded.append((source.name, weakref.ref(model)))
        return model

    monkeypatch.setattr(comparison, "load_model", load)
    benchmarking.main(arguments(folders, tmp_path / "results"))
    assert [name for name, _ in loaded] == [str(folders.base), str(folders.merged)]
    benchmarking.main(arguments(folders, tmp_path / "results", "--hf_repository", folders.adapter))
    assert [name for name, _ in loaded[2:]] == [str(folders.adapter)]
    capsys.readouterr()
    # other settings of the Kotlin set alone
    benchmarking.main(arguments(folders, tmp_path / "results", "--max_new_tokens", 3))
    printed = capsys.readouterr().err
    assert printed.count(" differs in max_new_tokens; ") == 2
    assert "Python stand-in: 6 of 6 examples found" in printed


# ----------------------------------------------------------------------------------------------------------
# Two models with two tokenizers
# ----------------------------------------------------------------------------------------------------------

CONTEXTS = ("--context_tokens", 0, 80)


@pytest.fixture(scope="module")
def apart(folders: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """What a benchmark reads, with whole files; `merged` is a model that has a tokenizer of its own."""
    folder = tmp_path_factory.mktemp("apart")
    own = with_files(folders, folder / "data")
    own.merged = save_other_model(folder / "other")
    return own


def contents(output: Path, model: str) -> dict[str, bytes]:
    """Return {file name: content} of the predictions and losses of a model."""
    return {file.name: file.read_bytes() for file in (output / "predictions").glob(f"{model}.*.jsonl")}


def test_each_model_is_read_and_written_with_its_own_tokenizer(apart: SimpleNamespace,
                                                               tmp_path: Path) -> None:
    """A model gets the token ids of another's tokenizer, or its tokens are spelled with it: a model of
    another kind is scored on noise."""
    run_stage(apart, tmp_path / "both", *CONTEXTS)
    for name, folder, make_tokenizer in (("llama", apart.base, tiny_models.make_tokenizer),
                                         ("other", apart.merged, make_other_tokenizer)):
        run_stage(apart, tmp_path / name, *CONTEXTS, "--base_model", folder, "--hf_repository", folder)
        alone = contents(tmp_path / name, name)
        assert len(alone) == 6
        assert contents(tmp_path / "both", name) == alone

        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), make_tokenizer()
        tasks = [codexglue_task(apart.codexglue, 0, 0),
                 *(kotlin_task(str(apart.data), 0, 0, 12, context, tokenizer) for context in (0, 80))]
        found = {rows[0]["header"]["set"]: rows for rows in predictions(tmp_path / name).values()}
        for task in tasks:
            header, *rows = found[task.name]
            assert header["header"]["tokenizer"] == tokenizer_identity(tokenizer)
            ids = encode_prompts(tokenizer, contexts(task, tokenizer))
            other = {apart.base: make_other_tokenizer, apart.merged: tiny_models.make_tokenizer}[folder]()
            assert (contexts(task, other) != contexts(task, tokenizer)) == bool(task.tokens.context)
            expected = generate_batch(model, tokenizer, ids, task)
            assert {row["id"]: row["prediction"] for row in rows} == {
                example.id: result["text"] for example, result in zip(task.examples, expected, strict=True)}


def test_what_counts_tokens_is_left_out_where_the_tokens_differ(apart: SimpleNamespace, tmp_path: Path,
                                                                capsys: pytest.CaptureFixture) -> None:
    """A loss a token of larger tokens is compared with one of smaller, and the model with the coarser
    vocabulary seems worse; or the report, the chart or the card ends with a traceback."""
    metrics = run_stage(apart, tmp_path, *CONTEXTS, "--baselines", "--update_card")
    printed, report = capsys.readouterr().out, (tmp_path / "report.md").read_text()
    assert len(metrics["sets"]) == 3
    for name, entry in metrics["sets"].items():
        unknown = {PARSES} if name == "Python stand-in" else set()  # of which there is no file
        assert set(entry["scores"]) == set(Scores.NAMES) - {LOSS, LENGTH} - unknown
        assert "|tokens:each model's own|" in entry["signature"]
        assert "perplexity" not in entry
        assert f"| {name}, n=6 | {LOSS_BYTE} |" in report
    assert printed.count(f"\n   {LOSS_BYTE} ") == 3
    assert LOSS not in printed
    assert "perplexity" not in report
    assert report.count("- the models have different tokenizers: what counts tokens is not compared") == 3
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
    size = sum(len(row["completion"].encode()) for row in load_examples(str(apart.data), ("test",))["test"])
    for key, model in (("base", "llama"), ("fine_tuned", "other")):
        [file] = (tmp_path / "predictions").glob(f"{model}.kotlin.*.losses.jsonl")
        nats = sum(json.loads(line)["nats"] for line in file.read_text().splitlines()[1:])
        assert metrics["sets"]["Kotlin"]["scores"][LOSS_BYTE][key] == pytest.approx(nats / size, abs=1e-4)


def test_one_tokenizer_is_compared_by_the_token(folders: SimpleNamespace, tmp_path: Path) -> None:
    """The perplexity is left out though both models count alike: a merged model has a copy of the
    tokenizer."""
    for entry in run_stage(folders, tmp_path)["sets"].values():
        assert set(entry["scores"]) == set(Scores.NAMES) - {PARSES}
        assert "each model's own" not in entry["signature"]


def test_predictions_of_another_tokenizer_are_not_found_again(apart: SimpleNamespace, tmp_path: Path,
                                                              capsys: pytest.CaptureFixture) -> None:
    """--tokenizer changes nothing, as the predictions of before are taken; or it costs them, or is given to
    the base model too."""
    run_stage(apart, tmp_path, *CONTEXTS)
    before = {file: file.read_bytes() for file in (tmp_path / "predictions").iterdir()}
    capsys.readouterr()
    metrics = run_stage(apart, tmp_path, *CONTEXTS, "--tokenizer", apart.base)
    printed = capsys.readouterr().err
    assert printed.count(" differs in tokenizer; ") == 3
    assert "llama on Kotlin: 6 of 6 examples found" in printed
    assert "other on Kotlin: 6 of 6 examples found" not in printed
    after = {file: file.read_bytes() for file in (tmp_path / "predictions").iterdir()}
    assert before.items() < after.items()
    assert len(after) == len(before) + 6
    headers = [rows[0]["header"] for file, rows in predictions(tmp_path).items() if file.startswith("other.")]
    assert sorted({header["tokenizer"] for header in headers}) == sorted(
        tokenizer_identity(make()) for make in (tiny_models.make_tokenizer, make_other_tokenizer))
    # now both count alike
    assert LOSS in metrics["sets"]["Kotlin"]["scores"]


def test_a_model_without_a_tokenizer_can_be_given_one(apart: SimpleNamespace, tmp_path: Path,
                                                      capsys: pytest.CaptureFixture,
                                                      error_line: Callable[[str], str]) -> None:
    """A model that was saved without its tokenizer is scored on prompts that are empty, or not at all; or the
    base model is given it too."""
    bare = tmp_path / "bare"
    tiny_models.make_model("gpt2", seed=2).save_pretrained(bare)
    with pytest.raises(SystemExit):
        benchmarking.main(arguments(apart, tmp_path / "results", "--hf_repository", bare))
    assert f"model {bare}: holds no tokenizer" in error_line(capsys.readouterr().err)
    run_stage(apart, tmp_path / "results", "--hf_repository", bare, "--tokenizer", apart.merged)
    found = {file.split(".")[0]: rows[0]["header"]["tokenizer"]
             for file, rows in predictions(tmp_path / "results").items()}
    assert found == {"llama": tokenizer_identity(tiny_models.make_tokenizer()),
                     "bare": tokenizer_identity(make_other_tokenizer())}
