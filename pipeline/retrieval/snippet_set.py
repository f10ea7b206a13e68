"""The Kotlin set with repository context: snippets of the train split's files before the file, and what they
change."""
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.data.datasets import load_examples, load_files
from pipeline.model.tokenizers import encode_plain
from pipeline.prompts.contexts import FileTexts, find_cuts
from pipeline.prompts.prompter import Prompter, PromptForms
from pipeline.prompts.repository_form import (
    RepositoryPrompt,
    form_of_manifest,
    name_of_repository,
    prompt_form,
)
from pipeline.retrieval.index import query_of
from pipeline.retrieval.snippet_cache import RepositoryFiles, Request, cache_of, pieces_needed
from pipeline.run.stage import note
from pipeline.scoring.scores import Scores, compare
from pipeline.tasks.answers import ROLES, Answers, ModelOnSet
from pipeline.tasks.task import Example, Task, fold_white_space

CHARACTERS_FOLLOWING = 8000  # of the best snippet's file, from the snippet on, kept for the baseline
WITHOUT = "without answers in the snippets"


def choose_form(manifest: dict[str, Any] | None, name: str, tokenizers: list[Any]) -> RepositoryPrompt:
    """Return the form of both models' repository context: the one that the fine-tuned model was trained with,
    by its `manifest`, or, with a note, that of the base's tokenizer."""
    trained = form_of_manifest(manifest, tokenizers[1], f"model {name}")
    if trained is not None:
        return trained
    form = prompt_form(tokenizers[0])
    note(f"{name} was not trained with repository context; it is evaluated with it all the same "
         f"({form.describe()})")
    return form


def repository_task(task: Task, dataset: str, tokens: int, form: RepositoryPrompt, tokenizer: Any,
                    output: Path) -> Task | None:
    """Return `task`, a Kotlin set, with at most `tokens` tokens of snippets of train, and the file's path,
    before each context; None, with a note, if the data set has no files.

    `tokenizer`, the base's, counts what reports show.  The retrieved snippets are kept beside the data set
    (`cache_of`).
    """
    files = load_files(dataset, ("train", "test"))
    rows = load_examples(dataset, ("test",), verify=False)["test"].select(
        [int(example.id) for example in task.examples])[:]
    cuts = find_cuts(rows, files and FileTexts(files["test"]))
    if None in cuts:
        note(f"--dataset {dataset}: holds no whole files; not evaluated with repository context")
        return None
    retrieval = RepositoryFiles(files["train"], dataset)
    numbers = {line: number for number, line in enumerate(files["test"]["source_line"][:])}
    own = [files["test"][numbers[line]] for line in rows["source_line"]]
    requests = [Request(file["repository"], query_of(cut.before), text=file["text"])
                for file, cut in zip(own, cuts, strict=True)]
    retrieved = retrieval.find(requests, pieces_needed(tokens), cache_of(dataset, output))
    examples = [dataclasses.replace(
        example, best_snippet=retrieval.following(found[0])[:CHARACTERS_FOLLOWING] if found else "",
        place=example.place._replace(path=file["path"], repository=name_of_repository(file["repository"]),
                                     snippets=[retrieval.piece(each) for each in found]))
        for example, file, found in zip(task.examples, own, retrieved, strict=True)]
    context = json.dumps([[place.path, *place.snippets] for place in (each.place for each in examples)])
    settings = task.settings | {"repository": f"{tokens} tokens of repository context, {form.describe()}",
                                "repository_hash": hashlib.sha256(context.encode()).hexdigest()}
    with_snippets = dataclasses.replace(
        task, name=name_with_repository(task.name, tokens), examples=examples, settings=settings,
        tokens=task.tokens._replace(repository=tokens), twin=task.name)
    show_snippets(examples, Prompter(tokenizer, with_snippets.tokens, PromptForms(repository=form)))
    with_snippets.parts = without_answers(with_snippets.name, examples)
    return with_snippets


def name_with_repository(name: str, tokens: int) -> str:
    """Return the name of the set `name` with so many tokens of repository context."""
    return f"{name}, {tokens} tokens of repository context"


def show_snippets(examples: list[Example], prompter: Prompter) -> None:
    """Put the repository context before the prompts that reports show, and note which answers it holds."""
    for example in examples:
        prefix = prompter.prefix(example.place)
        before = prompter.tokenizer.decode(prefix.ids, clean_up_tokenization_spaces=False)
        example.prompt = before + example.prompt
        answer = fold_white_space(example.completion)
        example.in_snippets = any(answer in fold_white_space(snippet.text) for snippet in prefix.shown)


def without_answers(name: str, examples: list[Example]) -> dict[str, list[int]]:
    """Return, as `Task.parts`, the examples of the set `name` whose answers are not in their snippets; empty
    if that is all or none."""
    left = [i for i, example in enumerate(examples) if not example.in_snippets]
    return {f"{name}, {WITHOUT}": left} if 0 < len(left) < len(examples) else {}


def add_gains(sets: dict[str, Any], tasks: list[Task], answers: dict[ModelOnSet, Answers],
              tokenizers: Sequence[Any], seed: int) -> None:
    """Add to metrics.json's entry of each set with repository context what that context changes, and how many
    answers it holds.

    "gain": for the base and the fine-tuned model, by score, `without`, `with`, their `difference`, intervals
    and p, as `compare` returns them for two models.
    """
    names = {"base": "without", "base_interval": "without_interval", "fine_tuned": "with",
             "fine_tuned_interval": "with_interval"}
    by_name = {task.name: task for task in tasks}
    for task in tasks:
        twin = by_name.get(task.twin)
        if twin is None or len(twin.examples) != len(task.examples):  # a part of a set has no twin
            continue
        gains = {}
        for role, tokenizer in zip(ROLES, tokenizers, strict=True):
            one, other = (_scores(each, answers[ModelOnSet(role, each.name)], tokenizer)
                          for each in (twin, task))
            gains[role] = {score: {names.get(key, key): value for key, value in cell.items()}
                            for score, cell in compare(one, other, seed).items()}
        sets[task.name] |= {"gain": gains,
                            "in_snippets": sum(example.in_snippets for example in task.examples)}


def _scores(task: Task, answers: Answers, tokenizer: Any) -> Scores:
    """Return a model's scores on a set, in tokens of its own."""
    return Scores(task, answers.texts, [len(ids) for ids in encode_plain(tokenizer, answers.texts)],
                  answers.losses, answers.ended)
