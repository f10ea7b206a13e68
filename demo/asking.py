"""What a model writes at a place of a file: the part of complete.py that needs the libraries."""
import argparse
import time
from pathlib import Path
from typing import Any

from project import Project

from pipeline.decoding.greedy import end_tokens, generate_batch
from pipeline.evaluation.candidates import check_adapter_base, identify_model, load_model
from pipeline.hub.client import find_manifest
from pipeline.model.device import choose_precision
from pipeline.model.mergeable import read_adapter_json
from pipeline.model.model_source import ModelSource
from pipeline.model.tokenizers import encode_prompts, load_tokenizer
from pipeline.prompts.contexts import contexts_of
from pipeline.prompts.fim_formats import (
    InfillingFormat,
    encode_beginnings,
    encode_within,
    find_format,
    format_of_manifest,
)
from pipeline.run.errors import PipelineError
from pipeline.run.stage import duration
from pipeline.tasks.task import Task

CHARACTERS_A_TOKEN = 16  # more than any language has, of a text that is cut to a number of tokens


def find_sources(name: str, base_name: str | None) -> list[ModelSource]:
    """Return what the models are: the base, where it is given or an adapter needs it, and then the model."""
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


def find_infilling(owner: ModelSource, source: ModelSource, tokenizer: Any) -> InfillingFormat | None:
    """Return how a model is asked for a middle: as it was trained, or as its vocabulary has it; None where it
    cannot be asked."""
    trained = format_of_manifest(find_manifest(source.name), tokenizer, owner.name)
    return trained or find_format(tokenizer, owner.name)


def ask(tokenizer: Any, infilling: InfillingFormat | None, before: str, behind: str,
        args: argparse.Namespace) -> tuple[list[int], str, frozenset[int]]:
    """Return the token ids of a prompt, what it holds, in words, and the tokens that end its middle."""
    [context] = contexts_of(tokenizer, [before], args.context_tokens)
    if infilling and args.suffix_tokens and behind.strip():
        [prefix] = encode_beginnings(tokenizer, [context])
        [suffix] = encode_within(tokenizer, [behind[:CHARACTERS_A_TOKEN * args.suffix_tokens]])
        suffix = suffix[:args.suffix_tokens]
        seen = f"between {len(prefix)} and {len(suffix)} ({infilling.family})"
        return infilling.prompt(prefix, suffix), seen, infilling.stops
    [prompt] = encode_prompts(tokenizer, [context])
    return prompt or [tokenizer.eos_token_id], f"behind {len(prompt)}", frozenset()


def write(source: ModelSource, base: ModelSource, before: str, behind: str, args: argparse.Namespace,
          project: Project | None = None) -> tuple[str, str]:
    """Load a model, decode at the place, and let the model go; return the text, and how much it was in which
    time.

    `project`: whose pieces stand before the file.  What blanks `before` ends in, the model writes itself;
    those that it does write are cut.
    """
    owner = base if source.adapter else source  # an adapter has its base's tokenizer, as in the benchmark
    tokenizer = load_tokenizer(owner.name, owner.commit)
    stripped = before.rstrip(" \t")
    prompt, seen, stops = ask(tokenizer, find_infilling(owner, source, tokenizer), stripped, behind, args)
    if project:
        alone = len(prompt)
        prompt, prefix = project.prompt(tokenizer, source.name, prompt)
        seen += f" and {len(prompt) - alone} of {len(prefix.shown)} pieces"
    started = time.perf_counter()
    model = load_model(source, base, choose_precision(args.precision))
    loaded = time.perf_counter()
    if stops:
        model.generation_config.eos_token_id = sorted(end_tokens(model, tokenizer) | stops)
    task = Task("completion", [], args.max_new_tokens, str.strip, None)
    [found] = generate_batch(model, tokenizer, [prompt], task)
    seconds = time.perf_counter() - loaded
    told = (f"{found['tokens']} tokens{'' if found['ended'] else ', the budget'}, {seen}, in "
            f"{duration(seconds)}: {found['tokens'] / seconds:.1f} tokens a second (loaded in "
            f"{duration(loaded - started)})")
    return found["text"].removeprefix(before[len(stripped):]), told
