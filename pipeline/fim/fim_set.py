"""The set "Kotlin, infilling": what stands between the text before a cut and that behind the completion."""
import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.model.model_source import ModelSource
from pipeline.prompts.contexts import first_lines
from pipeline.prompts.fim_formats import (
    InfillingFormat,
    encode_beginnings,
    encode_within,
    find_format,
    format_of_manifest,
)
from pipeline.retrieval.snippet_set import name_with_pieces, without_answers
from pipeline.run.stage import note
from pipeline.tasks.task import CHARACTERS_KEPT, Task

NAME = "infilling"  # behind the language


def choose_formats(sources: list[ModelSource], tokenizers: list[Any],
                   manifest: dict[str, Any] | None) -> bool:
    """Give each model the format in which it is asked for the middle; return whether the set can be asked.

    The fine-tuned model's is the one of its `manifest`, else that of its family, and the base, which is of
    the same family, is asked in the same.  Where the tokens were given by hand, the base does not know them:
    it is asked with the text before the cut alone, and a note says so.
    """
    base, tuned = sources
    own = format_of_manifest(manifest, tokenizers[1], tuned.name)
    tuned.infilling = own or find_format(tokenizers[1], tuned.name)
    if tuned.infilling is None:
        note(f"{NAME} is left out: {tuned.name} has no infilling tokens")
        return False
    if tuned.infilling.by_hand:
        note(f"{NAME}: {base.name} was not taught {' '.join(tuned.infilling.tokens)}; it is asked with the "
              "text before the cut alone")
        return True
    found = find_format(tokenizers[0], base.name)
    if found is None:
        note(f"{NAME} is left out: {base.name} has no infilling tokens")
        return False
    same = found.tokens == tuned.infilling.tokens
    base.infilling = dataclasses.replace(found, layout=tuned.infilling.layout, order=tuned.infilling.order) \
        if same else found
    return True


def format_name(form: InfillingFormat | None) -> str:
    """Return in a few words how a model is asked."""
    return f"{form.order} with {' '.join(form.tokens)}" if form else "the text before the cut alone"


def infilling_task(task: Task, suffix_tokens: int, sources: Sequence[ModelSource]) -> Task | None:
    """Return the Kotlin task `task` with at most so many tokens of the text behind each completion, in whole
    lines; None, with a note, where the data set has no files to take them from.

    Every reference ends where that text begins.  `sources`: the models, whose formats its settings name.
    What stands before the context of `task`, pieces of the repository, stands before the format's marks too,
    as Qwen2.5-Coder was taught it; the twin of such a set is the one without them.
    """
    name = f"{task.language}, {NAME}"
    if any(example.after is None for example in task.examples):
        note(f"{name} is left out: the data set holds no whole files")
        return None
    kept = CHARACTERS_KEPT * suffix_tokens
    examples = [dataclasses.replace(example, ends=True, after=example.after[:kept])
                for example in task.examples]
    settings = task.settings | {
        "prompt": f"{task.settings['prompt']} and {suffix_tokens} tokens behind",
        "base": format_name(sources[0].infilling), "fine-tuned": format_name(sources[1].infilling),
        "suffix_hash": hashlib.sha256(json.dumps([e.after for e in examples]).encode()).hexdigest()}
    asked = dataclasses.replace(task, name=name, examples=examples, settings=settings,
                                suffix_tokens=suffix_tokens, asked=[])
    if task.repository_tokens:
        asked.name, asked.twin = name_with_pieces(name, task.repository_tokens), name
        asked.parts = without_answers(asked.name, examples)
    return asked


def task_of(task: Task, source: ModelSource) -> Task:
    """Return the task as this model is asked it: in its own format, where it is one of infilling."""
    form = source.infilling
    if not task.suffix_tokens:
        return task
    settings = task.settings | {"asked": format_name(form)}
    if form is None:
        return dataclasses.replace(task, settings=settings)
    return dataclasses.replace(task, settings=settings, encode=prompt_encoder(task, form), stops=form.stops)


def prompt_encoder(task: Task, form: InfillingFormat) -> Callable[[Any, list[str]], list[list[int]]]:
    """Return the function that makes the token ids of all prompts from the texts before the cuts."""
    def encode(tokenizer: Any, befores: list[str]) -> list[list[int]]:
        texts = [example.after or "" for example in task.examples]
        afters = first_lines(tokenizer, texts, task.suffix_tokens)
        return [form.prompt(before, after) for before, after in
                zip(encode_beginnings(tokenizer, befores), encode_within(tokenizer, afters), strict=True)]

    return encode
