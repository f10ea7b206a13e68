"""The set "Kotlin, infilling": the FIM middle between the text before a cut and the text after the
completion."""
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from pipeline.model.model_source import ModelSource
from pipeline.prompts.fim_formats import InfillingFormat, find_format, format_of_manifest
from pipeline.prompts.prompter import CHARACTERS_KEPT, PromptForms
from pipeline.retrieval.snippet_set import name_with_repository, without_answers
from pipeline.run.stage import note
from pipeline.tasks.task import Task

NAME = "infilling"  # after the language


def choose_formats(sources: Sequence[ModelSource], tokenizers: Sequence[Any],
                   manifest: dict[str, Any] | None) -> tuple[InfillingFormat | None, ...] | None:
    """Return the FIM formats of the base and the fine-tuned model; None, with a note, if the set cannot be
    evaluated.

    The fine-tuned model's is the one of its `manifest`, else that of its family; the base, which is of the
    same family, gets the same one.  If the tokens were given by hand, the base was never trained with them:
    its format is None, the text before the cut only, and a note says so.
    """
    base, tuned = sources
    own = format_of_manifest(manifest, tokenizers[1], tuned.name) or find_format(tokenizers[1], tuned.name)
    if own is None:
        note(f"{NAME} is left out: {tuned.name} has no FIM tokens")
        return None
    if own.by_hand:
        note(f"{NAME}: {base.name} was not trained with {' '.join(own.tokens)}; it is prompted with the text "
             "before the cut only")
        return None, own
    family = find_format(tokenizers[0], base.name)
    if family is None:
        note(f"{NAME} is left out: {base.name} has no FIM tokens")
        return None
    if family.tokens == own.tokens:
        family = dataclasses.replace(family, layout=own.layout, order=own.order)
    return family, own


def infilling_task(task: Task, suffix_tokens: int,
                   formats: Sequence[InfillingFormat | None]) -> Task | None:
    """Return the Kotlin task `task` with at most so many tokens of the text after each completion, in whole
    lines; None, with a note, if the data set has no files to take them from.

    Every reference ends where that text begins.  `formats`: of the base and the fine-tuned model, which the
    settings name.  The repository context of `task` precedes the FIM tokens, as Qwen2.5-Coder was trained;
    the twin of such a set is the one without it.
    """
    name = f"{task.source.language}, {NAME}"
    if any(place.after is None for place in task.places()):
        note(f"{name} is left out: the data set holds no whole files")
        return None
    kept = CHARACTERS_KEPT * suffix_tokens
    examples = [dataclasses.replace(example, ends=True,
                                    place=example.place._replace(after=example.place.after[:kept]))
                for example in task.examples]
    base, tuned = (PromptForms(form).describe_fim() for form in formats)
    after = json.dumps([example.place.after for example in examples])
    settings = task.settings | {
        "prompt": f"{task.settings['prompt']}, {suffix_tokens} tokens after the completion",
        "base": base, "fine-tuned": tuned, "suffix_hash": hashlib.sha256(after.encode()).hexdigest()}
    infilling = dataclasses.replace(task, name=name, examples=examples, settings=settings,
                                    tokens=task.tokens._replace(suffix=suffix_tokens))
    if task.tokens.repository:
        infilling.name, infilling.twin = name_with_repository(name, task.tokens.repository), name
        infilling.parts = without_answers(infilling.name, examples)
    return infilling
