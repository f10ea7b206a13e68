"""The Kotlin set with pieces of the repository before the file: what is asked, and what it is worth."""
import dataclasses
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.data.datasets import load_examples, load_files
from pipeline.model.tokenizers import encode_plain
from pipeline.prompts.contexts import FileTexts, find_cuts
from pipeline.prompts.repository_form import (
    Prefixes,
    RepositoryPrompt,
    form_of_manifest,
    name_of_repository,
    prompt_form,
)
from pipeline.retrieval.index import query_of
from pipeline.retrieval.snippet_cache import RepositoryFiles, Request, cache_of, pieces_needed
from pipeline.scoring.scores import Scores, compare
from pipeline.tasks.task import Example, Task, fold_white_space

CHARACTERS_BEHIND = 8000  # of the best piece's file, from the piece on, kept for the baseline
WITHOUT = "without those that stand in their pieces"


def choose_form(manifest: dict[str, Any] | None, name: str, tokenizers: list[Any]) -> RepositoryPrompt:
    """Return the form in which both models are asked: the one that the fine-tuned model was taught in, by its
    `manifest`, or, with a note, that of the base's tokenizer."""
    taught = form_of_manifest(manifest, tokenizers[1], f"model {name}")
    if taught is not None:
        return taught
    form = prompt_form(tokenizers[0])
    print(f"note: {name} was not taught with pieces of a repository before a file; it is asked with them all "
          f"the same ({form.describe()})", file=sys.stderr)
    return form


def repository_task(task: Task, dataset: str, tokens: int, form: RepositoryPrompt, tokenizer: Any,
                    output: Path) -> Task | None:
    """Return `task`, a Kotlin set, with at most `tokens` tokens of pieces of train, and the file's path,
    before each context; None, with a note, where the data set has no files.

    `tokenizer`, the base's, counts what is shown.  What was retrieved is kept beside the data set
    (`cache_of`).
    """
    files = load_files(dataset, ("train", "test"))
    rows = load_examples(dataset, ("test",), verify=False)["test"].select(
        [int(example.id) for example in task.examples])[:]
    cuts = find_cuts(rows, files and FileTexts(files["test"]))
    if None in cuts:
        print(f"note: --dataset {dataset}: holds no whole files; not asked with pieces of the repository",
              file=sys.stderr)
        return None
    source = RepositoryFiles(files["train"], dataset)
    numbers = {line: number for number, line in enumerate(files["test"]["source_line"][:])}
    own = [files["test"][numbers[line]] for line in rows["source_line"]]
    requests = [Request(file["repository"], query_of(cut.before), text=file["text"])
                for file, cut in zip(own, cuts, strict=True)]
    found = source.find(requests, pieces_needed(tokens), cache_of(dataset, output))
    examples = [dataclasses.replace(
        example, pieces=[source.piece(place) for place in places], path=file["path"],
        repository=name_of_repository(file["repository"]),
        best=source.following(places[0])[:CHARACTERS_BEHIND] if places else "")
        for example, file, places in zip(task.examples, own, found, strict=True)]
    pieces = json.dumps([[example.path, *example.pieces] for example in examples])
    settings = task.settings | {"pieces": f"{tokens} tokens of the repository, {form.describe()}",
                                "pieces_hash": hashlib.sha256(pieces.encode()).hexdigest()}
    asked = dataclasses.replace(
        task, name=name_with_pieces(task.name, tokens), examples=examples, settings=settings,
        repository_tokens=tokens, twin=task.name,
        put_before=lambda own, contexts: put_pieces_before(own, form, examples, contexts, tokens))
    for example, text in zip(examples, task.examples, strict=True):
        show_pieces(example, text.prompt, Prefixes(tokenizer, form), tokens)
    asked.parts = without_answers(asked.name, examples)
    return asked


def name_with_pieces(name: str, tokens: int) -> str:
    """Return the name of the set `name` where so many tokens of the repository stand before it."""
    return f"{name}, {tokens} of the repository"


def put_pieces_before(tokenizer: Any, form: RepositoryPrompt, examples: list[Example],
                      contexts: list[list[int]], tokens: int) -> list[list[int]]:
    """Return the token ids of the contexts, each behind the pieces and the path of its example.

    A tokenizer that has not the tokens of `form` gets the form of its own family.
    """
    known = set(tokenizer.get_added_vocab())
    prefixes = Prefixes(tokenizer, form if {form.repository, form.file} - {""} <= known
                        else prompt_form(tokenizer))
    return [prefixes.prompt(prefixes.before(example.repository, example.path, example.pieces, tokens), ids)
            for example, ids in zip(examples, contexts, strict=True)]


def show_pieces(example: Example, context: str, prefixes: Prefixes, tokens: int) -> None:
    """Let an example's prompt be what is shown of it, and note whether its answer stands there."""
    prefix = prefixes.before(example.repository, example.path, example.pieces, tokens)
    example.prompt = prefixes.tokenizer.decode(prefix.ids, clean_up_tokenization_spaces=False) + context
    answer = fold_white_space(example.completion)
    example.in_pieces = any(answer in fold_white_space(piece.text) for piece in prefix.shown)


def without_answers(name: str, examples: list[Example]) -> dict[str, list[int]]:
    """Return, as `Task.parts`, the examples of the set `name` whose answers do not stand in their pieces;
    nothing where that is all or none."""
    left = [i for i, example in enumerate(examples) if not example.in_pieces]
    return {f"{name}, {WITHOUT}": left} if 0 < len(left) < len(examples) else {}


def add_gains(sets: dict[str, Any], tasks: list[Task], found: Sequence[dict[tuple[int, str], list]],
              tokenizers: list[Any], seed: int) -> None:
    """Add to what metrics.json says of a set with pieces what they change, and how many answers they hold.

    "gain": for the base and the fine-tuned model, by score, `without`, `with`, their `difference`, intervals
    and p, as `compare` has them of two models.  `found`: predictions, ends and losses by model and set.
    """
    names = {"base": "without", "base_interval": "without_interval", "fine_tuned": "with",
             "fine_tuned_interval": "with_interval"}
    by_name = {task.name: task for task in tasks}
    for task in tasks:
        twin = by_name.get(task.twin)
        if twin is None or len(twin.examples) != len(task.examples):  # a part of a set has no twin
            continue
        gains = {}
        for which, model in enumerate(("base", "fine_tuned")):
            one, other = (_scores(asked, *(results[which, asked.name] for results in found),
                                  tokenizers[which]) for asked in (twin, task))
            gains[model] = {score: {names.get(key, key): value for key, value in cell.items()}
                            for score, cell in compare(one, other, seed).items()}
        sets[task.name] |= {"gain": gains, "in_pieces": sum(example.in_pieces for example in task.examples)}


def _scores(task: Task, texts: list[str], ended: list[bool], losses: list[tuple[float, int]],
            tokenizer: Any) -> Scores:
    """Return a model's scores on a set; of one model, its own tokens count."""
    return Scores(task, texts, [len(ids) for ids in encode_plain(tokenizer, texts)], losses, ended)
