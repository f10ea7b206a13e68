"""pipeline/evaluation/losses.py: the loss of a reference behind its prompt, and what a rerun finds of it."""
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_models
import torch
from evaluation_runs import run_stage
from transformers import AutoModelForCausalLM

from pipeline.data.datasets import load_examples
from pipeline.evaluation import comparison, losses
from pipeline.evaluation.losses import batch_losses
from pipeline.scoring.scores import LOSS

pytestmark = pytest.mark.usefixtures("one_thread", "short_methods")


def labelled_rows(number: int = 7) -> list[tuple[list[int], list[int]]]:
    """Return prompts and completions of various lengths, as token ids."""
    tokenizer = tiny_models.make_tokenizer()
    return [(tokenizer(prompt * (1 + i % 3))["input_ids"], tokenizer(completion)["input_ids"])
            for i, (prompt, completion) in enumerate(tiny_models.examples(number, seed=5))]


def loss_by_labels(model: Any, prompt: list[int], completion: list[int]) -> float:
    """Return what transformers itself gives: the mean loss of the labels, times their number."""
    with torch.inference_mode():
        labels = torch.tensor([[-100] * len(prompt) + completion])
        mean = model(input_ids=torch.tensor([prompt + completion]), labels=labels).loss.item()
    return mean * len(completion)


@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_loss_is_what_transformers_gives_for_labels(architecture: str) -> None:
    """Padding, or a shift by one token, changes the loss, and with it the perplexity."""
    model, rows = tiny_models.make_model(architecture), labelled_rows()
    rows.insert(3, (rows[0][0], []))  # an empty reference costs nothing
    assert len({len(prompt) for prompt, _ in rows}) > 3
    with torch.inference_mode():
        found = batch_losses(model, rows)
    assert found[3] == (0, 0)
    del found[3], rows[3]
    for (nats, tokens), (prompt, completion) in zip(found, rows, strict=True):
        assert tokens == len(completion)
        assert nats == pytest.approx(loss_by_labels(model, prompt, completion), abs=2e-3)


def test_loss_of_what_is_longer_than_the_context() -> None:
    """A long docstring ends the benchmark with an error, or the loss is taken of the prompt."""
    model, (prompt, completion) = tiny_models.make_model("gpt2"), labelled_rows(1)[0]
    long_prompt, long_completion = (prompt * 200)[:900], (completion * 200)[:900]
    with torch.inference_mode():
        cut_prompt, cut_completion = batch_losses(model, [(long_prompt, completion),
                                                          (prompt, long_completion)])
    kept = tiny_models.CONTEXT - len(completion)
    expected = loss_by_labels(model, long_prompt[-kept:], completion)
    assert cut_prompt == (pytest.approx(expected, abs=2e-3), len(completion))
    kept = tiny_models.CONTEXT - 1
    expected = loss_by_labels(model, prompt[-1:], long_completion[:kept])
    assert cut_completion == (pytest.approx(expected, abs=5e-2), kept)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_an_empty_completion_costs_nothing(architecture: str) -> None:
    """One empty completion of a data set from elsewhere ends the benchmark in a traceback."""
    model = tiny_models.make_model(architecture)
    with torch.inference_mode():
        assert batch_losses(model, [([5, 6], []), ([7], [])]) == [(0.0, 0), (0.0, 0)]
        (nothing, none), (nats, one) = batch_losses(model, [([5, 6], []), ([7, 8], [9])])
        assert (nothing, none, one) == (0.0, 0, 1)
        assert nats == pytest.approx(batch_losses(model, [([7, 8], [9])])[0][0], abs=1e-4)


def test_loss_in_the_results_is_that_of_the_model(folders: SimpleNamespace, tmp_path: Path) -> None:
    """The loss that is shown belongs to other text than the reference behind its prompt."""
    metrics = run_stage(folders, tmp_path)
    tokenizer = tiny_models.make_tokenizer()
    rows = load_examples(str(folders.data), ("test",))["test"]
    pairs = []
    for row in rows:
        alone, text = (tokenizer(text)["input_ids"] for text in (row["prompt"],
                                                                 row["prompt"] + row["completion"]))
        begun = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(alone, text, strict=False)))
        pairs.append((text[:begun], text[begun:]))
    tokens = sum(len(completion) for _, completion in pairs)
    for key, folder in (("base", folders.base), ("fine_tuned", folders.merged)):
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        expected = sum(loss_by_labels(model, *pair) for pair in pairs) / tokens
        assert metrics["sets"]["Kotlin"]["scores"][LOSS][key] == pytest.approx(expected, abs=1e-3)


def test_losses_are_found_again(folders: SimpleNamespace, tmp_path: Path,
                                monkeypatch: pytest.MonkeyPatch) -> None:
    """A rerun loads both models only for the loss, keeps a torn line, or ends with other files."""
    monkeypatch.setattr(losses, "LOSS_BATCH_TOKENS", 120)  # several batches
    metrics = run_stage(folders, tmp_path)
    files = sorted((tmp_path / "predictions").glob("*.losses.jsonl"))
    whole = {file: file.read_bytes() for file in files}
    assert len(files) == 4
    for number, (file, content) in enumerate(whole.items()):
        lines = content.splitlines(keepends=True)
        file.write_bytes([content[:-3], b"".join(lines[:4]), lines[0][:9],
                          b"".join(lines[:3]) + b'{"id"'][number])
    rows = []
    monkeypatch.setattr(losses, "batch_losses",
                        lambda model, batch: rows.append(len(batch)) or batch_losses(model, batch))
    assert run_stage(folders, tmp_path) == metrics
    assert {file: file.read_bytes() for file in files} == whole
    assert 0 < sum(rows) < 24
    monkeypatch.setattr(comparison, "load_model", None)  # nothing is missing: no model is loaded
    again = run_stage(folders, tmp_path, "--baselines")
    assert again["sets"]["Kotlin"]["scores"] == metrics["sets"]["Kotlin"]["scores"]
    # a loss of another precision is none
    files[0].write_bytes(whole[files[0]].replace(b'"float32"', b'"bf16"', 1))
    with pytest.raises(TypeError):
        run_stage(folders, tmp_path)
