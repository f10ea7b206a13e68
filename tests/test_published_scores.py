"""--update_card: the scores in a model's card and as the hub's evaluation results, in a folder and on the
hub."""
import copy
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_models
import yaml
from hub_server import READ_TOKEN, Hub
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, RepoCard, parse_eval_result_entries

import benchmarking
import merge_lora
from pipeline.evaluation.published_scores import (
    CARD_METRICS,
    card_results,
    card_with_scores,
    eval_result_files,
    update_card,
)
from pipeline.prompts.prompter import PromptTokens
from pipeline.run.errors import PipelineError
from pipeline.run.hashes import sha256_file
from pipeline.run.manifests import check_manifest, sealed_manifest
from pipeline.scoring.scores import LOSS_BYTE
from pipeline.tasks import codexglue
from pipeline.tasks.task import DataSource, Task, fold_white_space

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A base model, the merge of an adapter into it, with its card and manifest, a data set and a CodeXGLUE
    file."""
    import torch  # here, for most tests of this file do without it

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("scores")
    base = tiny_models.save_model(folder / "base", "llama")
    adapter = tiny_models.save_adapter(folder / "adapter", base)
    merge_lora.main(["--hf_repository", str(adapter), "--output_dir", str(folder / "merged"), "--verify",
                     "off"])
    return SimpleNamespace(base=base, merged=folder / "merged",
                           data=tiny_models.save_dataset(folder / "data", chunk_tokens=12),
                           codexglue=tiny_models.save_codexglue(folder / "test.jsonl"))


def results(name: str = "data", value: float = 40.0) -> list[EvalResult]:
    """Return two scores on the data set `name`."""
    return [EvalResult(task_type="text-generation", dataset_type=name, dataset_name=name,
                       dataset_split="test", dataset_args={"settings": "n:5|seed:0"}, metric_type=kind,
                       metric_name=kind.upper(), metric_value=value,
                       metric_args={"interval_95": [value - 1, value + 1], "base_model": 3.5})
            for kind in ("bleu", "loss")]


# The card

FRONT = "license: mit  # as the base\ntags: [code,   'kotlin']\n"
OTHER = ("model-index:\n- name: mine\n  results:\n  - task:\n      type: text-generation\n"
         "    dataset:\n      type: other\n      name: Other\n"
         "    metrics:\n    - type: bleu\n      value: 1.5\n")
FLOW = ("model-index: [{name: mine, results: [{task: {type: text-generation},\n"
        "  dataset: {type: other, name: Other}, metrics: [{type: bleu, value: 1.5}]}]}]\n")


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize(("front", "behind"), [
    (FRONT, ""), (FRONT + OTHER, ""), (OTHER, FRONT), (OTHER + "\n", "\n# why\n" + FRONT),
    (OTHER.replace("    dataset", "# odd\n    dataset"), FRONT), ("", ""), (FLOW, FRONT),
    ("model-index: [\n]\n", FRONT)])
def test_card_keeps_what_is_not_its_own(front: str, behind: str, line_end: str) -> None:
    """An update of the card loses the author's text, other results, or the other keys of the front matter."""
    body = "# Mine\n\n---\nmodel-index:\n- no front matter  \n---\n`é`\n"
    card = (f"---\n{front}{behind}---\n{body}" if front else body).replace("\n", line_end)
    before = RepoCard(card).data.to_dict()
    once = card_with_scores(card, "name", results())
    assert once.endswith(f"---{line_end}" + body.replace("\n", line_end))
    after = RepoCard(once).data.to_dict()
    assert [key for key in after if key in before] == list(before)
    assert {key: value for key, value in after.items() if key != "model-index"} == \
        {key: value for key, value in before.items() if key != "model-index"}
    assert ("\r\n" in once) == (line_end == "\r\n")
    assert "\n" not in once.replace(line_end, "")
    twice = ModelCard(card_with_scores(once, "name", results(value=41.5)))
    found = [(r.dataset_type, r.metric_type, r.metric_value) for r in twice.data.eval_results]
    other = [("other", "bleu", 1.5)] if "name: mine" in front else []
    assert found == [*other, ("data", "bleu", 41.5), ("data", "loss", 41.5)]
    assert twice.data.get("license") == ("mit" if FRONT in front + behind else None)
    assert twice.data.model_name == ("mine" if other else "name")
    assert card_with_scores(once, "name", results()) == once


def test_keys_of_any_kind_keep_their_values() -> None:
    """A key that the hub's library knows under another meaning, or not at all, is lost or changed."""
    front = {"model_name": "Mine", "tags": ["b", "a", "b"], "language": ["en", "zh"], "date": "2025-01-01",
             "version": 1.10, "widget": [{"text": "fun main() {\n    1\n}\n" * 9, "none": None}],
             "new-key": "é"}
    card = f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n# Mine"
    written = card_with_scores(card, "name", results())
    after = RepoCard(written).data.to_dict()
    assert ModelCard(written).data.model_name == after.pop("model-index")[0]["name"] == "Mine"
    assert list(after.items()) == list(front.items())
    assert written.endswith("\n---\n# Mine")


@pytest.mark.parametrize("front", [
    "a: [", "- a list", "model-index: 3", "model-index: a text", "eval_results: [3]", "1: a number",
    "model-index: [{name: x, results: [{task: {type: t}, dataset: {type: d, name: d}, source: s, metrics: "
    "[]}]}]"])
def test_a_card_that_cannot_be_read_is_not_touched(front: str, tmp_path: Path) -> None:
    """A card that is written by hand is destroyed, or costs a traceback after hours of work."""
    for content in (f"---\n{front}\n---\n# x\n".encode(), "# é\n".encode("latin-1")):
        (tmp_path / "README.md").write_bytes(content)
        with pytest.raises(PipelineError, match=r"README\.md"):
            update_card(str(tmp_path), results("tester/data"))
        assert (tmp_path / "README.md").read_bytes() == content
        assert not (tmp_path / ".eval_results").exists()


# The evaluation results of the hub

def task(name: str, dataset: str, context_tokens: int) -> Task:
    """Return a set of no examples."""
    return Task(name, [], 100, fold_white_space, source=DataSource(dataset, name.split()[0]),
                tokens=PromptTokens(context_tokens), methods=name.endswith("methods"))


@pytest.mark.parametrize(("dataset", "file"), [("tester/kotlin", ".eval_results/tester--kotlin.yaml"),
                                               ("kotlin_prepared_dataset", None), ("test.jsonl", None)])
def test_only_a_data_set_of_the_hub_has_evaluation_results(dataset: str, file: str | None) -> None:
    """The hub does not read the scores, or reads those on a local file as if they were of a data set
    there."""
    assert list(eval_result_files(results(dataset) + results("other.jsonl"))) == ([file] if file else [])


def test_every_score_is_an_evaluation_result() -> None:
    """A score of the card is missing from the leaderboard, stands there under another, or without its
    settings."""
    cell = {"base": 1.0, "fine_tuned": 2.0, "fine_tuned_interval": [1.5, 2.5], "p": 0.01}
    scores = {score: cell | {"fine_tuned": float(number)} for number, score in enumerate(CARD_METRICS)}
    context = "512 tokens of context"
    sets = [("CodeXGLUE (Python)", codexglue.CODEXGLUE_DATASET, 0), ("Kotlin", "tester/kotlin", 0),
            (f"Kotlin, {context}", "tester/kotlin", 512), ("Kotlin methods", "tester/kotlin", 512)]
    metrics = {"sets": {name: {"scores": scores, "signature": f"data:{dataset}|tokens:{tokens}"}
                        for name, dataset, tokens in sets}}
    tasks = [task(name, dataset, tokens) for name, dataset, tokens in sets]
    found = card_results(metrics, tasks)
    files = eval_result_files(found)
    assert list(files) == [".eval_results/microsoft--codexglue_method_generation.yaml",
                           ".eval_results/tester--kotlin.yaml"]
    entries = [entry for content in files.values()
               for entry in parse_eval_result_entries(yaml.safe_load(content))]
    behind = ["", "", "_behind_512_tokens", "_methods_behind_512_tokens"]
    assert [(entry.dataset_id, entry.task_id, entry.value) for entry in entries] == [
        (dataset, kind + more, float(number)) for (_, dataset, _), more in zip(sets, behind, strict=True)
        for number, kind in enumerate(CARD_METRICS.values())]
    assert len({(entry.dataset_id, entry.task_id) for entry in entries}) == len(entries) == 24
    assert {"exact_match", "next_line_similarity", "chrf"} < {entry.task_id for entry in entries}
    bleu = [entry.notes for entry in entries if entry.task_id.startswith("bleu")]
    assert bleu == [f"metric {metric}, interval_95 [1.5, 2.5], base_model 1.0, p 0.01, settings "
                    f"data:{dataset}|tokens:{tokens}" for (_, dataset, tokens), metric
                    in zip(sets, ("BLEU", "BLEU", f"BLEU, {context}", "BLEU, methods"), strict=True)]
    # in the card too, which has one entry for all sets of one data set
    card = ModelCard(card_with_scores("# Mine\n", "name", found))
    assert len(card.data.to_dict()["model-index"][0]["results"]) == 2
    assert [(r.metric_type, r.metric_name, r.metric_args["settings"]) for r in card.data.eval_results] == [
        (r.metric_type, r.metric_name, r.metric_args["settings"]) for r in found]
    assert {r.dataset_name for r in card.data.eval_results} == {
        "CodeXGLUE (Python): microsoft/codexglue_method_generation", "Kotlin: tester/kotlin"}


def test_a_score_that_the_models_do_not_share_is_not_published() -> None:
    """Two models with two tokenizers have no loss a token, and the card costs a traceback after hours."""
    cell = {"base": 1.0, "fine_tuned": 2.0, "fine_tuned_interval": [1.5, 2.5], "p": 0.01}
    metrics = {"sets": {"Kotlin": {"scores": {"BLEU": cell, LOSS_BYTE: cell}, "signature": "s"}}}
    assert [result.metric_type for result in card_results(metrics, [task("Kotlin", "data", 0)])] == ["bleu"]


def test_evaluation_results_in_a_folder(folders: SimpleNamespace, tmp_path: Path) -> None:
    """A folder lacks what a hub repository gets, its manifest does not name it, or results of others are
    lost."""
    merged = Path(shutil.copytree(folders.merged, tmp_path / "merged"))
    (merged / ".eval_results").mkdir()
    (merged / ".eval_results" / "mine.yaml").write_text("- mine")
    before = json.loads((merged / "manifest.json").read_text())
    for value in (40.0, 41.5):
        found = results("tester/kotlin", value) + results("local", value)
        assert update_card(str(merged), found) == str(merged / "README.md")
    names = sorted(path.name for path in (merged / ".eval_results").iterdir())
    assert names == ["mine.yaml", "tester--kotlin.yaml"]
    assert (merged / ".eval_results" / "mine.yaml").read_text() == "- mine"
    written = merged / ".eval_results" / "tester--kotlin.yaml"
    behind = "interval_95 [40.5, 42.5], base_model 3.5, settings n:5|seed:0"
    assert parse_eval_result_entries(yaml.safe_load(written.read_text())) == [
        EvalResultEntry("tester/kotlin", kind, 41.5, notes=f"metric {kind.upper()}, {behind}")
        for kind in ("bleu", "loss")]
    card = ModelCard.load(merged / "README.md")
    assert [r.dataset_type for r in card.data.eval_results] == ["tester/kotlin"] * 2 + ["local"] * 2
    after = check_manifest(merged)
    assert after["outputs"] == before["outputs"] | {
        "README.md": sha256_file(merged / "README.md"),
        ".eval_results/tester--kotlin.yaml": sha256_file(written)}
    assert {**after, "outputs": 0, "checksum": 0} == {**before, "outputs": 0, "checksum": 0}


@pytest.mark.parametrize("state", ["as it was merged", "no card", "no manifest"])
def test_scores_are_written_into_a_folder(state: str, folders: SimpleNamespace, tmp_path: Path,
                                          monkeypatch: pytest.MonkeyPatch,
                                          capsys: pytest.CaptureFixture) -> None:
    """The card is not what the hub reads, or the folder no longer fits its manifest, and the next stage
    refuses it."""
    monkeypatch.setattr(codexglue, "CODEXGLUE_MAX_NEW_TOKENS", 16)  # what tiny models have room for
    own = copy.copy(folders)
    own.merged = Path(shutil.copytree(folders.merged, tmp_path / "merged"))
    before = (own.merged / "README.md").read_text()
    if state == "no card":
        (own.merged / "README.md").unlink()
        manifest = json.loads((own.merged / "manifest.json").read_text())
        del manifest["outputs"]["README.md"]
        (own.merged / "manifest.json").write_text(json.dumps(sealed_manifest(manifest)))
    elif state == "no manifest":
        (own.merged / "manifest.json").unlink()
    for _ in range(2):
        benchmarking.main([str(part) for part in (
            "--hf_repository", own.merged, "--base_model", own.base, "--dataset", own.data,
            "--codexglue_file", own.codexglue, "--precision", "float32", "--batch_size", 3, "--output_dir",
            tmp_path / "results", "--update_card")])
    metrics = json.loads((tmp_path / "results" / "metrics.json").read_text())
    assert capsys.readouterr().out.splitlines()[-1] == f"wrote the scores into {own.merged / 'README.md'}"
    card = ModelCard.load(own.merged / "README.md")
    assert len(card.data.eval_results) == 2 * len(CARD_METRICS) == 12
    [bleu] = [r for r in card.data.eval_results if r.dataset_type == "data" and r.metric_type == "bleu"]
    scores = metrics["sets"]["Kotlin"]["scores"]
    assert bleu.metric_value == scores["BLEU"]["fine_tuned"]
    assert bleu.metric_args["interval_95"] == scores["BLEU"]["fine_tuned_interval"]
    # a stand-in is not called CodeXGLUE's test set
    assert {r.dataset_type for r in card.data.eval_results} == {"data", "test.jsonl"}
    text = (own.merged / "README.md").read_text()
    if state == "no card":
        assert text.endswith("---\n# merged\n")
    else:
        assert text[text.index("\n---\n"):] == before[before.index("\n---\n"):]
    if state != "no manifest":
        assert check_manifest(own.merged)["outputs"]["README.md"] == sha256_file(own.merged / "README.md")
    assert not list(own.merged.glob(".*"))


# The hub

@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    """The stand-in for the hub."""
    with Hub() as running:
        yield running


def on_hub(hub: Hub, home: Path, code: str, *arguments: object,
           **environment: Any) -> subprocess.CompletedProcess:
    """Run Python in an environment in which the clients talk to the hub."""
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT,
                          env=hub.environment(home, **environment), capture_output=True, text=True,
                          timeout=110)


UPDATE = ("import argparse, sys\nfrom huggingface_hub import EvalResult\n"
          "from pipeline.evaluation.published_scores import check_card_target, update_card\n"
          "from pipeline.run.stage import run_stage\n"
          "results = [EvalResult('text-generation', name, 'Data', 'bleu', 4.5) for name in ('tester/data', "
          "'data')]\nargs = argparse.Namespace(hf_repository=sys.argv[1], revision=None)\n"
          "def stage(args):\n    check_card_target(args)\n    print(update_card(args.hf_repository, "
          "results))\nrun_stage(stage, args)\n")


def test_scores_are_written_into_a_repository(hub: Hub, folders: SimpleNamespace, tmp_path: Path) -> None:
    """The card on the hub is not updated, or in several commits, or the manifest there no longer fits; or the
    repository gets other files than a folder."""
    hub.add("tester/merged", folders.merged)
    before = hub.repository("tester/merged").head
    done = on_hub(hub, tmp_path / "hf", UPDATE, "tester/merged")
    assert done.returncode == 0, done.stderr
    after = hub.repository("tester/merged").head
    assert after.parent == before.id
    assert done.stdout.endswith(f"\nthe card of tester/merged (commit {after.id})\n")
    assert len(hub.sent("POST", r"/api/models/tester/merged/commit/")) == 1
    changed = {name: file.content for name, file in after.files.items() if file != before.files.get(name)}
    assert set(changed) == {"README.md", ".eval_results/tester--data.yaml", "manifest.json"}
    assert [r.metric_value for r in ModelCard(changed["README.md"].decode()).data.eval_results] == [4.5, 4.5]
    outputs = json.loads(changed.pop("manifest.json"))["outputs"]
    assert {name: outputs[name] for name in changed} == {name: hashlib.sha256(content).hexdigest()
                                                         for name, content in changed.items()}

    shutil.copytree(folders.merged, tmp_path / "merged")
    local = on_hub(hub, tmp_path / "hf", UPDATE, tmp_path / "merged")
    assert local.returncode == 0, local.stderr
    check_manifest(tmp_path / "merged")
    for name, content in changed.items():
        expected = content.replace(b"name: tester/merged", b"name: merged")
        assert (tmp_path / "merged" / name).read_bytes() == expected
    again = on_hub(hub, tmp_path / "hf", UPDATE, "tester/merged")
    assert again.returncode == 0, again.stderr
    assert hub.repository("tester/merged").head is after  # nothing new, no commit


def test_a_card_is_put_on_top_of_what_somebody_else_committed(hub: Hub, folders: SimpleNamespace,
                                                              tmp_path: Path) -> None:
    """A hub that is busy, or a commit of somebody else in between, costs the user his scores, or him his
    commit."""
    hub.add("tester/shared", folders.merged)
    hub.fail("POST", r"/api/models/tester/shared/commit/", 503)
    hub.fail("POST", r"/api/models/tester/shared/commit/", 0,
             change=lambda: hub.add("tester/shared", {"theirs.txt": b"x", "README.md": b"# Theirs\n"}))
    done = on_hub(hub, tmp_path / "hf", UPDATE, "tester/shared")
    assert done.returncode == 0, done.stderr
    assert "trying again in 1 s" in done.stderr
    assert "somebody else has committed meanwhile" in done.stderr
    files = hub.repository("tester/shared").head.files
    assert files["theirs.txt"].content == b"x"
    assert b"model-index" in files["README.md"].content
    assert files["README.md"].content.endswith(b"\n---\n# Theirs\n")
    assert b"task_id: bleu" in files[".eval_results/tester--data.yaml"].content


def test_a_card_on_the_hub_that_cannot_be_read(hub: Hub, folders: SimpleNamespace, tmp_path: Path) -> None:
    """A card on the hub that is no valid one is overwritten, or costs a traceback after hours of work."""
    before = hub.add("tester/odd", {"README.md": b"---\na: [\n---\n# x\n"})
    done = on_hub(hub, tmp_path / "hf", UPDATE, "tester/odd")
    assert done.returncode == 1
    assert "the front matter of tester/odd's README.md cannot be updated" in done.stderr.splitlines()[-1]
    assert hub.repository("tester/odd").head is before


def test_a_token_that_may_not_write_is_told_before_the_work(hub: Hub, folders: SimpleNamespace,
                                                            tmp_path: Path) -> None:
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
