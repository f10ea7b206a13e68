"""What a model writes at a place of a file: the part of complete.py that needs the libraries."""
import argparse
import time
from pathlib import Path
from typing import Any

from project import Project

from pipeline.decoding.greedy import generate_batch
from pipeline.evaluation.candidates import check_adapter_base, identify_model, load_model
from pipeline.hub.client import find_manifest
from pipeline.model.device import choose_precision
from pipeline.model.mergeable import read_adapter_json
from pipeline.model.model_source import ModelSource
from pipeline.model.tokenizers import load_tokenizer
from pipeline.prompts.fim_formats import InfillingFormat, find_format, format_of_manifest
from pipeline.prompts.prompter import Place, Prompter, PromptForms, PromptTokens
from pipeline.prompts.repository_form import COMMENTED
from pipeline.run.errors import PipelineError
from pipeline.run.stage import duration
from pipeline.tasks.task import Task


def find_sources(name: str, base_name: str | None) -> list[ModelSource]:
    """Return the models: the base, if it is given or an adapter needs it, and then the model."""
    model = identify_model(name, None)
    if model.adapter and base_name is None:
        base_name = read_adapter_json(Path(model.adapter)).get("base_model_name_or_path")
        if not base_name:
            raise PipelineError(f"--model {name}: is an adapter that names no base model; give --base_model")
    if base_name is None:
        return [model]
    base = identify_model(base_name, None)
    if base.adapter:
        raise PipelineError(f"--base_model {base_name}: is an adapter; name the model that it was trained on")
    check_adapter_base(model, base_name)
    return [base, model]


def find_fim(owner: ModelSource, source: ModelSource, tokenizer: Any) -> InfillingFormat | None:
    """Return a model's FIM format: the one that it was trained with, or that of its vocabulary; None if it
    has neither."""
    trained = format_of_manifest(find_manifest(source.name), tokenizer, owner.name)
    return trained or find_format(tokenizer, owner.name)


def prompter_of(tokenizer: Any, owner: ModelSource, source: ModelSource, after: str,
                args: argparse.Namespace, project: Project | None) -> Prompter:
    """Return what composes a model's prompt, as in the benchmark; in FIM form if there is text after the
    place."""
    fim = find_fim(owner, source, tokenizer)
    tokens = PromptTokens(args.context_tokens, args.suffix_tokens if after.strip() else 0,
                          project.tokens if project else 0)
    form = project.form(tokenizer, source.name) if project else COMMENTED
    return Prompter(tokenizer, tokens, PromptForms(fim, form))


def write(source: ModelSource, base: ModelSource, before: str, after: str, args: argparse.Namespace,
          project: Project | None = None) -> tuple[str, str]:
    """Load a model, decode at the place between `before` and `after`, and free the model; return the text,
    and a line with token counts and times.

    `project`: whose snippets precede the file.  Blanks at the end of `before` are left to the model, and cut
    from what it writes.
    """
    owner = base if source.adapter else source  # an adapter has its base's tokenizer, as in the benchmark
    tokenizer = load_tokenizer(owner.name, owner.commit)
    stripped = before.rstrip(" \t")
    prompter = prompter_of(tokenizer, owner, source, after, args, project)
    place = project.place(stripped, after) if project else Place(stripped, after)
    [prompt] = prompter.prompts([place])
    given = f"given {len(prompt)} tokens" + (f" in the FIM form of {prompter.fim.family}"
                                             if prompter.fim else "")
    if project:
        given += f", {len(prompter.prefix(place).shown)} snippets among them"
    started = time.perf_counter()
    model = load_model(source, base, choose_precision(args.precision))
    loaded = time.perf_counter()
    task = Task("completion", [], args.max_new_tokens, str.strip)
    [result] = generate_batch(model, tokenizer, [prompt], task, prompter.stops)
    seconds = time.perf_counter() - loaded
    report = (f"{result['tokens']} tokens{'' if result['ended'] else ', the budget'}, {given}, in "
              f"{duration(seconds)}: {result['tokens'] / seconds:.1f} tokens per second (loaded in "
              f"{duration(loaded - started)})")
    return result["text"].removeprefix(before[len(stripped):]), report
