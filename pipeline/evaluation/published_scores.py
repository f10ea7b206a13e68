"""The scores in a model's repository or folder: in its card, and as the hub's evaluation results.

The card (README.md) holds them in the model-index of its front matter.  `.eval_results/OWNER--NAME.yaml`
holds those on one data set of the hub: one number for each task of it, and each of our scores is a task.
"""
import argparse
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import (
    EvalResult,
    EvalResultEntry,
    ModelCardData,
    RepoCard,
    eval_result_entries_to_yaml,
    hf_hub_download,
)
from huggingface_hub.utils import yaml_dump

from pipeline.hub.client import check_hub_write, hub_errors
from pipeline.hub.commits import commit_files
from pipeline.retrieval.snippet_set import WITHOUT
from pipeline.run.errors import PipelineError, first_line
from pipeline.run.manifests import sealed_manifest
from pipeline.run.outputs import MANIFEST, atomic_file, output_lock
from pipeline.scoring.scores import LOSS, NEXT_LINE, NEXT_LINE_SIMILARITY
from pipeline.tasks.task import Task

CARD = "README.md"
CARD_METRICS = {NEXT_LINE: "exact_match", NEXT_LINE_SIMILARITY: "next_line_similarity",
                "edit similarity": "edit_similarity", "BLEU": "bleu", "chrF": "chrf", LOSS: "loss"}


def check_card_target(args: argparse.Namespace) -> None:
    """Raise PipelineError, before hours of work, where --update_card cannot write the card of
    --hf_repository."""
    if args.revision:
        raise PipelineError("--update_card: the card belongs to the branch main, and --revision names "
                            "another; leave one of them out")
    if not Path(args.hf_repository).is_dir():
        check_hub_write(args.hf_repository)


def card_results(metrics: dict[str, Any], tasks: list[Task]) -> list[EvalResult]:
    """Return the fine-tuned model's scores as a card holds them; the `dataset_type` of a hub data set is its
    hub name, that of another the name of its file or folder.

    A card has one entry for all scores on a data set: what differs between its sets stands with each score.
    """
    results = []
    for task in tasks:
        if task.name.endswith(WITHOUT):  # a card has one score of a kind; the table has both
            continue
        entry = metrics["sets"][task.name]
        language, *behind = task.name.split(", ")  # e.g. "512 tokens of context"
        context, suffix, repository = task.tokens
        kind = f"_behind_{context}_tokens" if context else ""
        kind += "_infilling" if suffix else ""
        kind += f"_and_{repository}_of_the_repository" if repository else ""
        if task.methods:  # another kind of task on the same data set
            kind = "_".join(["_methods", *(part.replace(" ", "_").lower() for part in behind)]) + kind
            language, behind = task.source.language, ["methods", *behind]
        for score in (score for score in CARD_METRICS if score in entry["scores"]):
            cell = entry["scores"][score]
            results.append(EvalResult(
                task_type="text-generation", task_name="code completion", dataset_type=task.source.dataset,
                dataset_split="test", dataset_name=f"{language}: {task.source.dataset}",
                metric_type=CARD_METRICS[score] + kind, metric_name=", ".join([score, *behind]),
                metric_value=cell["fine_tuned"],
                metric_args={"interval_95": cell["fine_tuned_interval"], "base_model": cell["base"],
                             "p": cell["p"], "settings": entry["signature"]}))
    return results


def card_with_scores(card: str, name: str, results: list[EvalResult]) -> str:
    """Return a model card with `results` in the model-index of its front matter, in place of results of the
    same data sets; `name` is the model's where the card gives none.

    The text below the front matter stays as it is, byte for byte; the front matter is written anew, with its
    other keys in their order, without its comments.  PipelineError where it cannot be read.
    """
    try:
        written = RepoCard(card)  # not ModelCard, which takes the key model_name out
        known = ModelCardData(**written.data.to_dict())
        replaced = {result.dataset_type for result in results}
        kept = [result for result in known.eval_results or [] if result.dataset_type not in replaced]
        index = ModelCardData(model_name=known.model_name or name, eval_results=kept + results).to_dict()
        written.data["model-index"] = index["model-index"]
        return str(written)
    except (AttributeError, TypeError, ValueError, yaml.YAMLError) as error:  # of another form than is known
        raise PipelineError(f"--update_card: the front matter of {name}'s {CARD} cannot be updated: "
                            f"{first_line(error)}; mend it and run again (the scores are kept)") from error


def eval_result_files(results: list[EvalResult]) -> dict[str, bytes]:
    """Return {name: content} of the files from which the hub reads evaluation results, one for each data set
    that has a hub name (OWNER/NAME): a leaderboard belongs to a data set of the hub.

    The `task_id` is the metric's type, for a result is one number; a leaderboard shows those that the data
    set's eval.yaml names.  The interval, the base model's score and the settings are in the notes.
    """
    entries: dict[str, list[EvalResultEntry]] = {}
    for result in results:
        if result.dataset_type.count("/") != 1:
            continue
        notes = {"metric": result.metric_name, **(result.metric_args or {}), **(result.dataset_args or {})}
        entries.setdefault(result.dataset_type, []).append(EvalResultEntry(
            dataset_id=result.dataset_type, task_id=result.metric_type, value=result.metric_value,
            notes=", ".join(f"{key} {value}" for key, value in notes.items())))
    return {f".eval_results/{dataset.replace('/', '--')}.yaml":
            yaml_dump(eval_result_entries_to_yaml(of_dataset), sort_keys=False).encode()
            for dataset, of_dataset in entries.items()}


def updated_files(name: str, read: Callable[[str], bytes | None],
                  results: list[EvalResult]) -> dict[str, bytes]:
    """Return the new content of the card, of the files of evaluation results and, where there is a manifest
    of ours, of that; `read` gives a file as it is, None where it is missing."""
    try:
        text = (read(CARD) or f"---\n{{}}\n---\n# {name}\n".encode()).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PipelineError(f"--update_card: {name}'s {CARD} is not UTF-8; mend it and run again (the scores "
                            "are kept)") from error
    files = {CARD: card_with_scores(text, name, results).encode()} | eval_result_files(results)
    manifest = json.loads(read(MANIFEST) or b"{}")
    if isinstance(manifest, dict) and isinstance(manifest.get("outputs"), dict):
        manifest["outputs"] |= {file: hashlib.sha256(content).hexdigest() for file, content in files.items()}
        text = json.dumps(sealed_manifest(manifest), indent=2, ensure_ascii=False)
        files[MANIFEST] = f"{text}\n".encode()
    return files


def update_card(repository: str, results: list[EvalResult]) -> str:
    """Write the results into a folder, or into a hub repository in one commit; return what was written."""
    folder = Path(repository)
    if folder.is_dir():
        def read_local(file: str) -> bytes | None:
            return (folder / file).read_bytes() if (folder / file).is_file() else None

        with output_lock(folder):
            for file, content in updated_files(folder.resolve().name, read_local, results).items():
                with atomic_file(folder / file, binary=True) as out:
                    out.write(content)
        return str(folder / CARD)

    def files_at(head: str, names: set[str]) -> dict[str, bytes]:
        def read(file: str) -> bytes | None:
            if file not in names:
                return None
            return Path(hf_hub_download(repository, file, revision=head)).read_bytes()
        return updated_files(repository, read, results)

    with hub_errors("model", repository):
        commit = commit_files(repository, "model", "Add benchmark scores to the model card", files_at)
    return f"the card of {repository} (commit {commit})"
