"""benchmarking.py: the loss of the references, trivial baselines, the report, the model card, and the budget of a hub data set."""
import ast
import copy
import hashlib
import json
import math
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_models
from hub_server import READ_TOKEN, Hub
from hypothesis import given, settings
from hypothesis import strategies as st

import benchmarking
import pipeline_io
from benchmarking import (
    LENGTH,
    LOSS,
    Example,
    Scores,
    Task,
    batch_losses,
    card_with_scores,
    codexglue_prompt,
    codexglue_reference,
    compare,
    fold_white_space,
    normalize_python,
    plain_body,
)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


# The reference behind its prompt

@pytest.mark.parametrize(("body", "expected"), [
    ("return <NUM_LIT:1>", "\n    return 1"),
    ("if a:<EOL><INDENT>b = '<STR_LIT:xU+0020y>'<EOL><DEDENT>c", "\n    if a:\n        b = 'x y'\n    c"),
    ("if a:<EOL><INDENT>if b:<EOL><INDENT>c<EOL><DEDENT><DEDENT>d<EOL>", "\n    if a:\n        if b:\n            c\n    d"),
    ("if a:<INDENT>b<DEDENT>c", "\n    if a:\n        b\n    c"), ("f(a,<EOL>b)", "\n    f(a,\n    b)"),
    ("<DEDENT>a", "\n    a"), ("", "")])
def test_body_stands_on_indented_lines(body: str, expected: str) -> None:
    """The loss is taken on text that is not Python, where it says nothing about the model."""
    assert plain_body(body) == expected


def test_prompt_and_body_are_the_method_of_the_standard_library() -> None:
    """Prompt and reference do not make a function together, or the reference is scored otherwise than it reads."""
    sys.path.insert(0, str(ROOT / "demo"))
    try:
        import make_python_benchmark as maker
    finally:
        sys.path.remove(str(ROOT / "demo"))
    seen = 0
    for module, file in [pair for pair in maker.source_files() if pair[0] in ("argparse", "calendar", "shlex", "textwrap", "queue")]:
        for _, head, docstring, body in maker.documented_functions(module, file.read_text(encoding="utf-8")):
            marked, literals = maker.to_codexglue(body)
            if any(kind == "STR" and (">" in text or "\n" in text) for kind, text in literals):
                continue
            ast.parse(codexglue_prompt(maker.to_codexglue(head + " pass\n")[0].removesuffix(" pass"), docstring) + plain_body(marked))
            assert normalize_python(plain_body(marked), set(literals)) == codexglue_reference(marked)
            seen += 1
    assert seen > 40


def labelled_rows(number: int = 7) -> list[tuple[list[int], list[int]]]:
    """Return prompts and completions of various lengths, as token ids."""
    tokenizer = tiny_models.make_tokenizer()
    return [(tokenizer(prompt * (1 + i % 3))["input_ids"], tokenizer(completion)["input_ids"])
            for i, (prompt, completion) in enumerate(tiny_models.examples(number, seed=5))]


def loss_by_labels(model: Any, prompt: list[int], completion: list[int]) -> float:
    """Return what transformers itself gives: the mean loss of the labels, times their number."""
    import torch

    with torch.inference_mode():
        labels = torch.tensor([[-100] * len(prompt) + completion])
        return model(input_ids=torch.tensor([prompt + completion]), labels=labels).loss.item() * len(completion)


@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_loss_is_what_transformers_gives_for_labels(architecture: str) -> None:
    """Padding, or a shift by one token, changes the loss, and with it the perplexity."""
    import torch

    model, rows = tiny_models.make_model(architecture), labelled_rows()
    rows.insert(3, (rows[0][0], []))  # an empty reference costs nothing
    assert len({len(prompt) for prompt, _ in rows}) > 3
    with torch.inference_mode():
        found = batch_losses(model, rows)
    assert found[3] == (0, 0)
    for (nats, tokens), (prompt, completion) in [pair for i, pair in enumerate(zip(found, rows, strict=True)) if i != 3]:
        assert tokens == len(completion)
        assert nats == pytest.approx(loss_by_labels(model, prompt, completion), abs=2e-3)


def test_loss_of_what_is_longer_than_the_context() -> None:
    """A long docstring ends the benchmark with an error, or the loss is taken of the prompt."""
    import torch

    model, (prompt, completion) = tiny_models.make_model("gpt2"), labelled_rows(1)[0]
    long_prompt, long_completion = (prompt * 200)[:900], (completion * 200)[:900]
    with torch.inference_mode():
        cut_prompt, cut_completion = batch_losses(model, [(long_prompt, completion), (prompt, long_completion)])
    kept = tiny_models.CONTEXT - len(completion)
    assert cut_prompt == (pytest.approx(loss_by_labels(model, long_prompt[-kept:], completion), abs=2e-3), len(completion))
    kept = tiny_models.CONTEXT - 1
    assert cut_completion == (pytest.approx(loss_by_labels(model, prompt[-1:], long_completion[:kept]), abs=5e-2), kept)


# Scores

WORDS = [" ".join(random.Random(i).choices("abcdef", k=3 + i % 9)) for i in range(60)]


def task_of(references: list[str], name: str = "Kotlin", prompts: list[str] | None = None) -> Task:
    examples = [Example(str(i), prompts[i] if prompts else "", reference, reference, i, reference)
                for i, reference in enumerate(references)]
    return Task(name, examples, 10, fold_white_space, lambda text: None, dataset="data")


def test_loss_and_length_are_compared_as_the_scores_are() -> None:
    """The loss is the mean of means, which short references decide; or a model that lost is not told from one that won."""
    task, nats = task_of(WORDS), np.arange(60) % 7 + 1.0
    lengths = [len(word) for word in WORDS]
    base = Scores(task, WORDS, lengths, list(zip(nats * 2, lengths, strict=True)))
    tuned = Scores(task, WORDS, [n + 3 for n in lengths], list(zip(nats, lengths, strict=True)))
    cells = compare(base, tuned, 0)
    assert set(cells) == set(Scores.NAMES)
    assert cells[LOSS]["base"] == pytest.approx(2 * nats.sum() / sum(lengths), abs=1e-4)
    assert cells[LOSS]["difference"] == pytest.approx(-nats.sum() / sum(lengths), abs=1e-4)
    assert cells[LOSS]["difference_interval"][1] < 0
    assert cells[LOSS]["p"] < 0.01
    assert [name for name, cell in cells.items() if cell["lower_is_better"]] == [LOSS]
    assert cells[LENGTH]["difference"] == 3
    same = compare(base, Scores(task, WORDS, lengths, list(zip(nats * 2, lengths, strict=True))), 0)
    assert all(cell["difference"] == 0 and cell["p"] == 1 for cell in same.values())


def test_a_score_that_one_side_lacks_is_left_out() -> None:
    """A baseline, which has no loss, is reported to differ in it."""
    task, lengths = task_of(WORDS), [len(word) for word in WORDS]
    cells = compare(Scores(task, [""] * 60), Scores(task, WORDS, lengths, [(1.0, 2)] * 60), 0)
    assert set(cells) == set(Scores.NAMES) - {LOSS, LENGTH}
    assert "NaN" not in json.dumps(cells)


def test_edit_similarity_is_shown_rounded_and_kept_unrounded() -> None:
    """The published figure cannot be reproduced, or small changes are rounded away."""
    cells = compare(*[Scores(task_of(["abcdefg"] * 3), ["abcdex"] * 3)] * 2, 0)
    assert cells["edit similarity"]["base"] == 77
    assert cells["edit similarity, unrounded"]["base"] == pytest.approx(100 * 10 / 13, abs=1e-4)


# Trivial baselines

def train_split(rows: list[tuple[str, str]]) -> Any:
    from datasets import Dataset

    return Dataset.from_dict({"prompt": [p for p, _ in rows], "completion": [c for _, c in rows]})


def test_trivial_predictions() -> None:
    """A baseline looks at the reference, or copies something else than it says."""
    task = task_of(["x\ny", "x\n\ny\n", "x"], prompts=["a\nb\n\nc\n", "one", "val total = sum(items)\nprintln(total)"])
    train = train_split([("nothing of the kind", "no"), ("val total = sum(prices)\nprintln(total)", "yes"), ("a b", "some")])
    found = benchmarking.trivial_predictions(task, train, 0)
    assert found == {"nothing": ["", "", ""], "the prompt's last 2 lines": ["b\nc", "one", "val total = sum(items)\nprintln(total)"],
                     "most similar training completion": ["some", "no", "yes"]}
    assert set(benchmarking.trivial_predictions(task, None, 0)) == {"nothing", "the prompt's last 2 lines"}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcdefg")).map(" ".join), min_size=1, max_size=8),
       st.lists(st.sampled_from("abcdefgh")).map(" ".join))
def test_most_similar_is_the_largest_share_of_words(trained: list[str], prompt: str) -> None:
    """Another training example than the most similar one makes the baseline too easy to beat."""
    def share(a: str, b: str) -> float:
        return len(set(a.split()) & set(b.split())) / max(1, len(set(a.split()) | set(b.split())))

    [found] = benchmarking.similar_completions([prompt], train_split([(text, str(i)) for i, text in enumerate(trained)]), 0)
    assert share(prompt, trained[int(found)]) == max(share(prompt, text) for text in trained)


def test_similar_completions_looks_at_a_bounded_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """The baseline holds all training prompts in memory, or takes the completion of another row than it found."""
    monkeypatch.setattr(benchmarking, "BASELINE_EXAMPLES", 5)
    train = train_split([(f"same word{i}", str(i)) for i in range(50)])
    found = benchmarking.similar_completions([f"same word{i}" for i in range(50)], train, 3)
    drawn = {i for i, completion in enumerate(found) if int(completion) == i}
    assert set(found) == {str(i) for i in drawn}
    assert len(drawn) == 5


def test_a_model_that_does_not_beat_a_baseline_is_marked() -> None:
    """A model that is no better than copying its prompt passes for a good one, or a good one for a bad one."""
    task, copied = task_of(WORDS, prompts=WORDS), list(WORDS)
    good, bad = Scores(task, [f"{word} z" for word in WORDS]), Scores(task, ["q"] * 60)
    baselines = benchmarking.against_baselines(task_of(WORDS, prompts=["zz"] * 60), [bad, good], None, 0)
    assert baselines["nothing"]["scores"]["edit similarity"]["value"] == 0
    metrics = {"base_model": "b", "fine_tuned": "t",
               "sets": {"Kotlin": {"examples": 60, "signature": "s", "scores": {}, "baselines": baselines}}}
    marked = [note for note in benchmarking.make_notes(metrics) if note.startswith("NOT BETTER")]
    assert [re.findall(r'the (.*) on Kotlin does not significantly beat "(.*?)" in (.*)', note)[0] for note in marked] == [
        ("base model", "nothing", "edit similarity, first line exact, %"),
        ("base model", "the prompt's last 1 line", "edit similarity, BLEU, first line exact, %"),
        ("fine-tuned model", "nothing", "first line exact, %"), ("fine-tuned model", "the prompt's last 1 line", "first line exact, %")]
    metrics["sets"]["Kotlin"]["baselines"] = benchmarking.against_baselines(task, [Scores(task, copied), good], None, 0)
    assert ('NOT BETTER: the fine-tuned model on Kotlin does not significantly beat "the prompt\'s last 1 line" in '
            "edit similarity, BLEU, first line exact, %") in benchmarking.make_notes(metrics)
    assert any("no train split" in note for note in benchmarking.make_notes(metrics))


@pytest.mark.parametrize(("difference", "score", "forgot"),
                         [(0.5, LOSS, True), (-0.5, LOSS, False), (-0.5, "BLEU", True), (0.5, "BLEU", False)])
def test_a_loss_on_python_is_a_warning(difference: float, score: str, forgot: bool) -> None:
    """A higher loss passes for a gain, or a lower one for a loss."""
    metrics = {"base_model": "b", "fine_tuned": "t", "sets": {"CodeXGLUE (Python)": {
        "examples": 9, "signature": "s", "scores": {score: {"difference": difference, "p": 0.001}}}}}
    assert any("forgot some Python" in note for note in benchmarking.make_notes(metrics)) == forgot


# The report

@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("`~ \n#-|a>\t")))
def test_a_text_cannot_leave_its_block(text: str) -> None:
    """Code with backticks breaks the report, and what follows is shown as something else."""
    from markdown_it import MarkdownIt

    tokens = MarkdownIt().parse(f"before\n\n{benchmarking.fenced(text)}\n# behind\n")
    paragraph, heading = (["paragraph_open", "inline", "paragraph_close"], ["heading_open", "inline", "heading_close"])
    assert [token.type for token in tokens] == [*paragraph, "fence", *heading]
    assert tokens[3].content == f"{text}\n"


@pytest.mark.parametrize(("change", "gains", "losses"), [
    ([0.0, 5, -5, 9, -9, 1, -1, 2, -2, 0, 0, 3], [3, 1, 11], [4, 2, 8]), ([0.0] * 12, [], []), ([1.0, 2, -1], [1, 0], [2]),
    ([4.0], [0], [])])
def test_ten_examples_are_shown(change: list[float], gains: list[int], losses: list[int]) -> None:
    """The report shows an example twice, calls a loss a gain, or hides the largest losses."""
    found = benchmarking.examples_to_show(np.array(change), 0)
    assert (found["largest gains"], found["largest losses"]) == (gains, losses)
    shown = [i for chosen in found.values() for i in chosen]
    assert len(shown) == len(set(shown)) == min(10, len(change))
    assert found == benchmarking.examples_to_show(np.array(change), 0)


# The stage

@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A base model, the merge of an adapter into it, with its card and manifest, a data set and a CodeXGLUE file."""
    import merge_lora

    folder = tmp_path_factory.mktemp("scores")
    base = tiny_models.save_model(folder / "base", "llama")
    merge_lora.main(["--hf_repository", str(tiny_models.save_adapter(folder / "adapter", base)), "--output_dir", str(folder / "merged"),
                     "--verify", "off"])
    return SimpleNamespace(base=base, merged=folder / "merged", data=tiny_models.save_dataset(folder / "data", chunk_tokens=12),
                           codexglue=tiny_models.save_codexglue(folder / "test.jsonl"))


@pytest.fixture(autouse=True)
def short_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget for methods that fits tiny models."""
    monkeypatch.setattr(benchmarking, "CODEXGLUE_MAX_NEW_TOKENS", 16)


def run_stage(folders: SimpleNamespace, output: Path, *more: object) -> dict[str, Any]:
    """Run the benchmark and return its metrics."""
    benchmarking.main([str(part) for part in ("--hf_repository", folders.merged, "--base_model", folders.base, "--dataset", folders.data,
                                              "--codexglue_file", folders.codexglue, "--precision", "float32", "--batch_size", 3,
                                              "--output_dir", output, *more)])
    return json.loads((output / "metrics.json").read_text())


def test_everything_is_reported(folders: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A score, the perplexity, the baselines or the examples are computed and then shown nowhere."""
    metrics = run_stage(folders, tmp_path, "--baselines")
    printed, report = capsys.readouterr().out, (tmp_path / "report.md").read_text()
    assert max(map(len, printed[:printed.index("base: ")].splitlines())) <= 100
    assert "most similar training completion" in printed
    assert "most similar training completion" in (tmp_path / "table.md").read_text()
    for name, entry in metrics["sets"].items():
        assert set(entry["scores"]) == set(Scores.NAMES)
        assert all(cell["base_interval"][0] <= cell["base"] <= cell["base_interval"][1] for cell in entry["scores"].values())
        assert entry["perplexity"]["base"] == pytest.approx(math.exp(entry["scores"][LOSS]["base"]), rel=1e-3)
        assert entry["reference_length"] > 1
        assert sum(entry["change"][key] for key in ("better", "equal", "worse")) == 6
        assert len(entry["baselines"]) == (3 if name == "Kotlin" else 2)
        assert report.count(f"\n### {name} ") == 6
        assert all(f"| {name}, n=6 | {score} |" in report for score in Scores.NAMES)
        assert f"perplexity of the reference: base {entry['perplexity']['base']:.2f} [" in report
    assert "data:data|" in metrics["sets"]["Kotlin"]["signature"]
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("chart.png", "change.png"))
    for text in (row["prompt"] for row in benchmarking.load_examples(str(folders.data), ("test",))["test"]):
        assert benchmarking.fenced(text) in report


def test_loss_in_the_results_is_that_of_the_model(folders: SimpleNamespace, tmp_path: Path) -> None:
    """The loss that is shown belongs to other text than the reference behind its prompt."""
    from transformers import AutoModelForCausalLM

    metrics = run_stage(folders, tmp_path)
    tokenizer = tiny_models.make_tokenizer()
    rows = benchmarking.load_examples(str(folders.data), ("test",))["test"]
    pairs = [(tokenizer(row["prompt"])["input_ids"], tokenizer(row["completion"])["input_ids"]) for row in rows]
    for key, folder in (("base", folders.base), ("fine_tuned", folders.merged)):
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        expected = sum(loss_by_labels(model, *pair) for pair in pairs) / sum(len(completion) for _, completion in pairs)
        assert metrics["sets"]["Kotlin"]["scores"][LOSS][key] == pytest.approx(expected, abs=1e-3)


def test_losses_are_found_again(folders: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rerun loads both models only for the loss, keeps a torn line, or ends with other files."""
    monkeypatch.setattr(benchmarking, "LOSS_BATCH_TOKENS", 120)  # several batches
    metrics = run_stage(folders, tmp_path)
    files = sorted((tmp_path / "predictions").glob("*.losses.jsonl"))
    whole = {file: file.read_bytes() for file in files}
    assert len(files) == 4
    for number, (file, content) in enumerate(whole.items()):
        lines = content.splitlines(keepends=True)
        file.write_bytes([content[:-3], b"".join(lines[:4]), lines[0][:9], b"".join(lines[:3]) + b'{"id"'][number])
    rows = []
    monkeypatch.setattr(benchmarking, "batch_losses", lambda model, batch: rows.append(len(batch)) or batch_losses(model, batch))
    assert run_stage(folders, tmp_path) == metrics
    assert {file: file.read_bytes() for file in files} == whole
    assert 0 < sum(rows) < 24
    monkeypatch.setattr(benchmarking, "load_model", None)  # nothing is missing: no model is loaded
    assert run_stage(folders, tmp_path, "--baselines")["sets"]["Kotlin"]["scores"] == metrics["sets"]["Kotlin"]["scores"]
    files[0].write_bytes(whole[files[0]].replace(b'"float32"', b'"bf16"', 1))  # a loss of another precision is none
    with pytest.raises(TypeError):
        run_stage(folders, tmp_path)


# The model card

def results(name: str = "data", value: float = 40.0) -> list[Any]:
    from huggingface_hub import EvalResult

    return [EvalResult(task_type="text-generation", dataset_type=name, dataset_name=name, dataset_split="test", metric_type=kind,
                       metric_name=kind, metric_value=value) for kind in ("bleu", "loss")]


FRONT = "license: mit  # as the base\ntags: [code,   'kotlin']\n"
OTHER = ("model-index:\n- name: mine\n  results:\n  - task:\n      type: text-generation\n"
         "    dataset:\n      type: other\n      name: Other\n    metrics:\n    - type: bleu\n      value: 1.5\n")


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize(("front", "behind"), [(FRONT, ""), (FRONT + OTHER, ""), (OTHER, FRONT), (OTHER + "\n", "\n# why\n" + FRONT),
                                              (OTHER.replace("    dataset", "# odd\n    dataset"), FRONT), ("", "")])
def test_card_keeps_what_is_not_its_own(front: str, behind: str, line_end: str) -> None:
    """An update of the card loses the author's text, other results, or the form of the front matter."""
    from huggingface_hub import ModelCard

    body = "# Mine\n\n---\nmodel-index:\n- no front matter  \n---\n`é`\n"
    card = f"---\n{front}{behind}---\n{body}".replace("\n", line_end) if front else body.replace("\n", line_end)
    once = card_with_scores(card, "name", results())
    assert once.endswith(f"---{line_end}" + body.replace("\n", line_end))
    for part in (front.partition("model-index")[0], behind):
        assert part.strip().replace("\n", line_end) in once
    assert ("\r\n" in once) == (line_end == "\r\n")
    assert "\n" not in once.replace(line_end, "")
    twice = ModelCard(card_with_scores(once, "name", results(value=41.5)))
    found = [(r.dataset_type, r.metric_type, r.metric_value) for r in twice.data.eval_results]
    other = [("other", "bleu", 1.5)] if "name: mine" in front else []
    assert found == [*other, ("data", "bleu", 41.5), ("data", "loss", 41.5)]
    assert twice.data.get("license") == ("mit" if FRONT in front + behind else None)
    assert twice.data.model_name == ("mine" if other else "name")
    assert card_with_scores(once, "name", results()) == once


@pytest.mark.parametrize("front", ["a: [", "- a list", "model-index: 3", "model-index: [\n]\nb: 1"])
def test_a_card_that_cannot_be_read_is_not_touched(front: str, tmp_path: Path) -> None:
    """A card that is written by hand is destroyed, or costs a traceback after hours of work."""
    for content in (f"---\n{front}\n---\n# x\n".encode(), "# é\n".encode("latin-1")):
        (tmp_path / "README.md").write_bytes(content)
        with pytest.raises(pipeline_io.PipelineError, match=r"README\.md"):
            benchmarking.update_card(str(tmp_path), results())
        assert (tmp_path / "README.md").read_bytes() == content


@pytest.mark.parametrize("state", ["as it was merged", "no card", "no manifest"])
def test_scores_are_written_into_a_folder(state: str, folders: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The card is not what the hub reads, or the folder no longer fits its manifest, and the next stage refuses it."""
    from huggingface_hub import ModelCard

    own = copy.copy(folders)
    own.merged = Path(shutil.copytree(folders.merged, tmp_path / "merged"))
    before = (own.merged / "README.md").read_text()
    if state == "no card":
        (own.merged / "README.md").unlink()
        manifest = json.loads((own.merged / "manifest.json").read_text())
        del manifest["outputs"]["README.md"]
        (own.merged / "manifest.json").write_text(json.dumps(pipeline_io.sealed_manifest(manifest)))
    elif state == "no manifest":
        (own.merged / "manifest.json").unlink()
    metrics = run_stage(own, tmp_path / "results", "--update_card")
    run_stage(own, tmp_path / "results", "--update_card")
    assert capsys.readouterr().out.splitlines()[-1] == f"wrote the scores into {own.merged / 'README.md'}"
    card = ModelCard.load(own.merged / "README.md")
    assert len(card.data.eval_results) == 8
    [bleu] = [r for r in card.data.eval_results if r.dataset_type == "data" and r.metric_type == "bleu"]
    assert bleu.metric_value == metrics["sets"]["Kotlin"]["scores"]["BLEU"]["fine_tuned"]
    assert bleu.metric_args["interval_95"] == metrics["sets"]["Kotlin"]["scores"]["BLEU"]["fine_tuned_interval"]
    assert {r.dataset_type for r in card.data.eval_results} == {"data", "test.jsonl"}  # a stand-in is not called CodeXGLUE's test set
    text = (own.merged / "README.md").read_text()
    if state == "no card":
        assert text.endswith("---\n# merged\n")
    else:
        assert text[text.index("\n---\n"):] == before[before.index("\n---\n"):]
    if state != "no manifest":
        assert pipeline_io.check_manifest(own.merged)["outputs"]["README.md"] == pipeline_io.sha256_file(own.merged / "README.md")
    assert not list(own.merged.glob(".*"))


# The hub

@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub() as running:
        yield running


def on_hub(hub: Hub, home: Path, code: str, *arguments: object, **environment: Any) -> subprocess.CompletedProcess:
    """Run Python in an environment in which the clients talk to the hub."""
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, env=hub.environment(home, **environment),
                          capture_output=True, text=True, timeout=110)


UPDATE = ("import json, sys, benchmarking\nfrom huggingface_hub import EvalResult\nfrom pipeline_io import run_stage\nimport argparse\n"
          "results = [EvalResult('text-generation', 'data', 'Data', 'bleu', 4.5)]\n"
          "args = argparse.Namespace(hf_repository=sys.argv[1], revision=None)\n"
          "def stage(args):\n    benchmarking.check_card_target(args)\n    print(benchmarking.update_card(args.hf_repository, results))\n"
          "run_stage(stage, args)\n")


def test_scores_are_written_into_a_repository(hub: Hub, folders: SimpleNamespace, tmp_path: Path) -> None:
    """The card on the hub is not updated, or in several commits, or the manifest there no longer fits; or another's commit is undone."""
    from huggingface_hub import ModelCard

    hub.add("tester/merged", folders.merged)
    before = hub.repository("tester/merged").head
    done = on_hub(hub, tmp_path / "hf", UPDATE, "tester/merged")
    assert done.returncode == 0, done.stderr
    after = hub.repository("tester/merged").head
    assert len(hub.sent("POST", r"/api/models/tester/merged/commit/")) == 1
    assert {name for name in after.files if after.files[name] != before.files.get(name)} == {"README.md", "manifest.json"}
    card = after.files["README.md"].content
    assert [r.metric_value for r in ModelCard(card.decode()).data.eval_results] == [4.5]
    assert json.loads(after.files["manifest.json"].content)["outputs"]["README.md"] == hashlib.sha256(card).hexdigest()


def test_a_card_is_put_on_top_of_what_somebody_else_committed(hub: Hub, folders: SimpleNamespace, tmp_path: Path) -> None:
    """A hub that is busy, or a commit of somebody else in between, costs the user his scores, or him his commit."""
    hub.add("tester/shared", folders.merged)
    hub.fail("POST", r"/api/models/tester/shared/commit/", 503)
    hub.fail("POST", r"/api/models/tester/shared/commit/", 0, change=lambda: hub.add("tester/shared", {"theirs.txt": b"x"}))
    done = on_hub(hub, tmp_path / "hf", UPDATE, "tester/shared")
    assert done.returncode == 0, done.stderr
    assert "trying again in 1 s" in done.stderr
    assert "somebody else has committed meanwhile" in done.stderr
    files = hub.repository("tester/shared").head.files
    assert files["theirs.txt"].content == b"x"
    assert b"model-index" in files["README.md"].content


def test_a_token_that_may_not_write_is_told_before_the_work(hub: Hub, folders: SimpleNamespace, tmp_path: Path) -> None:
    """The benchmark runs for hours before the hub refuses the card."""
    hub.add("tester/refused", folders.merged)
    code = "import benchmarking, sys; benchmarking.main(sys.argv[1:])"
    common = ("--dataset", folders.data, "--codexglue_file", folders.codexglue, "--base_model", folders.base,
              "--output_dir", tmp_path / "out", "--update_card", "--hf_repository")
    refused = on_hub(hub, tmp_path / "hf", code, *common, "tester/refused", token=READ_TOKEN)
    assert refused.returncode == 1
    assert "the token may only read" in refused.stderr.splitlines()[-1]
    other = on_hub(hub, tmp_path / "hf", code, *common, "tester/refused", "--revision", "adapter")
    assert other.returncode == 1
    assert "--update_card: " in other.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("manifest", "budget"), [({"arguments": {"chunk_tokens": 37}, "outputs": {}}, 37), (None, 100)])
def test_budget_of_a_hub_data_set(manifest: dict[str, Any] | None, budget: int, hub: Hub, folders: SimpleNamespace, tmp_path: Path) -> None:
    """A hub data set of long chunks gets the budget of short ones, and nobody is told."""
    import datasets

    name = f"tester/data{budget}"
    datasets.load_from_disk(str(folders.data))["test"].to_parquet(tmp_path / "test.parquet")
    files = {"data/test.parquet": (tmp_path / "test.parquet").read_bytes(),
             "README.md": b"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: test\n    path: data/test.parquet\n---\n"}
    hub.add(name, files | ({"manifest.json": json.dumps(manifest).encode()} if manifest else {}), kind="dataset")
    code = ("import sys, benchmarking; task = benchmarking.kotlin_task(sys.argv[1], 0, 0, 0)\n"
            "print(task.max_new_tokens, task.dataset, task.settings['data_hash'])")
    done = on_hub(hub, tmp_path / "hf", code, name)
    assert done.returncode == 0, done.stderr
    local = benchmarking.kotlin_task(str(folders.data), 0, 0, 0)
    assert done.stdout.split() == [str(budget), name, local.settings["data_hash"]]  # the same rows: predictions are found again
    assert ("no manifest gives the length of its chunks" in done.stderr) == (manifest is None)
