"""Both models on all sets: predictions, losses of the references, and the scores."""
import argparse
import functools
import gc
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import rapidfuzz
import sacrebleu
import torch
import transformers

from pipeline.data.datasets import load_examples, load_methods
from pipeline.decoding.vllm_engine import VLLM_PROMPTS, generate_with_vllm, load_vllm
from pipeline.evaluation.baselines import against_baselines
from pipeline.evaluation.candidates import Candidate, load_model
from pipeline.evaluation.losses import reference_losses
from pipeline.evaluation.predictions import predict, prediction_header
from pipeline.evaluation.processes import Processes
from pipeline.model.device import release_memory
from pipeline.model.tokenizers import encode_plain, tokenizer_identity
from pipeline.retrieval.snippet_set import add_gains
from pipeline.scoring.parsing import parses
from pipeline.scoring.scores import LOSS, PARSES, Scores, compare
from pipeline.tasks.answers import Answers, ModelOnSet
from pipeline.tasks.task import Task


class Evaluation(NamedTuple):
    """What both models are evaluated with: the arguments, and what the machine has for them."""
    args: argparse.Namespace
    precision: str
    device: str
    processes: Processes


class OneModel:
    """One of the two models on all sets; results are reused from files in --output_dir."""

    def __init__(self, candidate: Candidate, base: Candidate, tasks: list[Task], run: Evaluation):
        self.candidate, self.base, self.tasks, self.run = candidate, base, tasks, run
        self.folder = run.args.output_dir / "predictions"
        self.prompters = {task.name: candidate.prompter(task) for task in tasks}
        self.headers = {task.name: prediction_header(task, candidate, base.source, run.args, run.precision,
                                                     run.device) for task in tasks}

    def load(self) -> Any:
        """Return the model itself."""
        return load_model(self.candidate.source, self.base.source, self.run.precision)

    def predict(self, model: Callable[[], Any], **engine: Any) -> dict[str, tuple[list[str], list[bool]]]:
        """Return the predictions of each set, and whether they ended by themselves; `model` loads what
        decodes, and `engine` are the arguments of `predict` for another engine."""
        return {task.name: predict(self.candidate.source, model, self.prompters[task.name], task,
                                   self.headers[task.name], self.folder, self.run.args.batch_size,
                                   processes=self.run.processes, **engine) for task in self.tasks}

    def losses(self, model: Callable[[], Any]) -> dict[str, list[tuple[float, int]]]:
        """Return the losses of each set's references."""
        return {task.name: reference_losses(self.candidate.source, model, self.prompters[task.name], task,
                                            self.headers[task.name], self.folder, self.run.processes)
                for task in self.tasks}


def evaluate(candidates: Sequence[Candidate], tasks: list[Task],
             run: Evaluation) -> dict[ModelOnSet, Answers]:
    """Return both models' answers on all sets.

    One model is in memory at a time, and is loaded only if something is missing in --output_dir.  Of several
    processes, only the first gets the answers.
    """
    models = [OneModel(candidate, candidates[0], tasks, run) for candidate in candidates]
    predictions: dict[str, dict[str, tuple[list[str], list[bool]]]] = {}
    losses: dict[str, dict[str, list[tuple[float, int]]]] = {}
    for model in models:
        role, load = model.candidate.role, functools.cache(model.load)
        if run.args.engine == "transformers":
            predictions[role] = model.predict(load)
        losses[role] = model.losses(load)
        load.cache_clear()
    if run.args.engine == "vllm":  # it takes nearly all of the GPU's memory: after all else
        release_memory()
        for model in models:
            source = model.candidate.source
            load = functools.cache(lambda source=source: load_vllm(source, run.precision))
            predictions[model.candidate.role] = model.predict(load, generate=generate_with_vllm,
                                                              prompts_per_call=VLLM_PROMPTS)
            load.cache_clear()
            gc.collect()  # its process ends with it
    return {ModelOnSet(role, name): Answers(*answers, losses[role][name])
            for role, sets in predictions.items() for name, answers in sets.items()}


def signature(task: Task, args: argparse.Namespace, precision: str, same_tokenizer: bool = True) -> str:
    """Return the settings of a score on one line."""
    return "|".join([f"data:{task.source.dataset}", f"n:{len(task.examples)}",
                     *(f"{key}:{value[:16] if 'hash' in key or 'sha' in key else value}"
                       for key, value in task.settings.items() if key != "file"),
                     *([] if same_tokenizer else ["tokens:each model's own"]),
                     f"budget:{task.max_new_tokens}", "decoding:greedy", f"precision:{precision}",
                     f"batch:{args.batch_size if args.engine == 'transformers' else args.engine}",
                     f"seed:{args.seed}",
                     f"similarity:rapidfuzz-{rapidfuzz.__version__}",
                     f"chrF:sacrebleu-{sacrebleu.__version__}",
                     f"transformers:{transformers.__version__}", f"torch:{torch.__version__}"])


def summarize_change(change: np.ndarray) -> dict[str, Any]:
    """Return how many examples became better, stayed and became worse, and quantiles of the change."""
    percents = (0, 5, 25, 50, 75, 95, 100)
    return {"better": int((change > 0).sum()), "equal": int((change == 0).sum()),
            "worse": int((change < 0).sum()),
            "quantiles": dict(zip(map(str, percents), np.percentile(change, percents).round(2).tolist(),
                                  strict=True))}


def train_split(task: Task, dataset: str) -> Any:
    """Return a training set of the task's kind, as prompts and completions, or None."""
    if not task.source.language:
        return None
    if task.methods:
        methods = load_methods(dataset, "train")
        return methods and methods.rename_columns({"signature": "prompt", "body": "completion"})
    return load_examples(dataset, (), verify=False, optional=("train",)).get("train")


def with_parts(tasks: list[Task], answers: dict[ModelOnSet, Answers]) -> list[Task]:
    """Return the tasks, each followed by its parts as tasks of their own, whose answers are added to
    `answers`."""
    every = []
    for task in tasks:
        every.append(task)
        for name, positions in task.parts.items():
            every.append(replace(task, name=name, examples=[task.examples[i] for i in positions], parts={}))
            answers.update({ModelOnSet(key.role, name): whole.select(positions)
                            for key, whole in list(answers.items()) if key.set_name == task.name})
    return every


def scores_of(task: Task, answers: Sequence[Answers], tokenizers: Sequence[Any],
              same_tokenizer: bool) -> tuple[list[Scores], list[bool | None]]:
    """Return the scores of each model, and whether the file still parses after each reference.

    Without the `same_tokenizer`, the scores that count tokens are left out: the loss per byte can be
    compared.
    """
    completions = [example.completion for example in task.examples]
    *parsed, of_references = parses(task, [*(own.texts for own in answers), completions],
                                    [*(own.ended for own in answers),
                                     [bool(example.ends) for example in task.examples]])
    return [Scores(task, own.texts, lengths(tokenizer, own.texts) if same_tokenizer else None,
                   own.losses if same_tokenizer else [(nats, np.nan) for nats, _ in own.losses], own.ended,
                   known)
            for own, tokenizer, known in zip(answers, tokenizers, parsed, strict=True)], of_references


def lengths(tokenizer: Any, texts: list[str]) -> list[int]:
    """Return the number of tokens of each text."""
    return [len(ids) for ids in encode_plain(tokenizer, texts)]


def score_set(task: Task, answers: dict[ModelOnSet, Answers], candidates: Sequence[Candidate],
              args: argparse.Namespace, precision: str) -> tuple[dict[str, Any], np.ndarray]:
    """Return the entry of a set in metrics.json, and the change of each example's edit similarity."""
    tokenizers = [candidate.tokenizer for candidate in candidates]
    same = tokenizer_identity(tokenizers[0]) == tokenizer_identity(tokenizers[1])
    models, of_references = scores_of(
        task, [answers[ModelOnSet(candidate.role, task.name)] for candidate in candidates], tokenizers, same)
    cells, change = compare(*models, args.seed), models[1].similarity - models[0].similarity
    references = lengths(tokenizers[0], [example.completion for example in task.examples])
    entry = {"examples": len(task.examples), "signature": signature(task, args, precision, same),
             "scores": cells, "reference_length": round(float(np.mean(references)), 4),
             "change": summarize_change(change)}
    ends = [example.ends for example in task.examples]
    if None not in ends:
        entry["reference_ended"] = round(100 * float(np.mean(ends)), 4)
    if PARSES in cells:
        known = [parsed for parsed in of_references if parsed is not None]
        entry["reference_parses"] = round(100 * float(np.mean(known)), 4)
    if LOSS in cells:
        entry["perplexity"] = {key: np.exp(cells[LOSS][key]).round(4).tolist()
                               for key in ("base", "base_interval", "fine_tuned", "fine_tuned_interval")}
    if args.baselines:
        entry["baselines"] = against_baselines(task, models, train_split(task, args.dataset), args.seed)
    return entry, change


def score_sets(tasks: list[Task], answers: dict[ModelOnSet, Answers], candidates: Sequence[Candidate],
               run: Evaluation) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the content of metrics.json, and the change of each example's edit similarity, by set."""
    base, tuned = (candidate.source for candidate in candidates)
    sets, changes = {}, {}
    for task in tasks:
        sets[task.name], changes[task.name] = score_set(task, answers, candidates, run.args, run.precision)
    add_gains(sets, tasks, answers, [candidate.tokenizer for candidate in candidates], run.args.seed)
    return {"base_model": run.args.base_model, "base_identity": base.identity,
            "fine_tuned": run.args.hf_repository, "fine_tuned_identity": tuned.identity,
            "fine_tuned_is_adapter": bool(tuned.adapter), "precision": run.precision, "device": run.device,
            "sets": sets}, changes
