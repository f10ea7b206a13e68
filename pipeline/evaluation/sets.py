"""The sets that the models are asked: Python once, and Kotlin behind each length of context."""
import argparse
import sys
from collections.abc import Sequence
from typing import Any

from pipeline.evaluation.processes import ALONE, Processes
from pipeline.evaluation.sample_size import choose_sample
from pipeline.fim.fim_set import infilling_task
from pipeline.methods.method_set import methods_task
from pipeline.model.device import context_length
from pipeline.model.model_source import ModelSource
from pipeline.prompts.repository_form import COMMENTED, RepositoryPrompt
from pipeline.retrieval.snippet_set import repository_task
from pipeline.tasks.codexglue import codexglue_task
from pipeline.tasks.completion_set import chunk_tokens, kotlin_task
from pipeline.tasks.task import Task

MARKS = 8  # tokens of a prompt that mark its parts and begin it, at most


def make_tasks(args: argparse.Namespace, base: ModelSource, tokenizer: Any, precision: str,
               processes: Processes = ALONE, infilling: Sequence[ModelSource] = (),
               form: RepositoryPrompt = COMMENTED) -> list[Task]:
    """Return the tasks, the same in all processes; `tokenizer`, the base's, counts the context of the prompts
    that are shown.  `infilling`: the models, where they are to be asked for the middle too; `form`: in which
    pieces of the repository stand before the longest context."""
    contexts = list(dict.fromkeys(args.context_tokens))
    budget = args.max_new_tokens or chunk_tokens(args.dataset)
    # a measured rate differs between processes, and so might what is drawn
    lengths = contexts + [max(contexts) + args.suffix_tokens] * bool(infilling)
    if args.repository_tokens:  # each of these a second time, with pieces
        lengths += [length + args.repository_tokens for length in lengths[len(contexts) - 1:]]
    sample = processes.agree(lambda: choose_sample(args.sample, base, lengths, budget, precision))
    if args.sample is None and processes.rank == 0:
        print(f"{sample} examples of each set (--sample chooses)", file=sys.stderr)
    kotlin = [kotlin_task(args.dataset, sample, args.seed, budget, context, tokenizer, verify=not number)
              for number, context in enumerate(contexts)]  # what is verified once need not be again
    if not any(kotlin):  # a context was asked for that the data set does not give
        kotlin = [kotlin_task(args.dataset, sample, args.seed, budget)]
    kotlin = list(filter(None, kotlin))
    longest = max(kotlin, key=lambda task: task.context_tokens)
    asked = [longest]  # without and with pieces of the repository
    if args.repository_tokens:
        asked.append(repository_task(longest, args.dataset, args.repository_tokens, form, tokenizer,
                                     args.output_dir))
    kotlin.extend(asked[1:])
    if infilling:
        kotlin.extend(infilling_task(task, args.suffix_tokens, infilling) for task in filter(None, asked))
    methods = methods_task(args.dataset, sample, args.seed, args.max_new_tokens, max(contexts), tokenizer)
    return [codexglue_task(args.codexglue_file, sample, args.seed), *filter(None, [*kotlin, methods])]


def fit_budgets(tasks: list[Task], sources: list[ModelSource]) -> None:
    """Shrink the budget of new tokens of those tasks that would leave no prompt in a model's context, with a
    note: to half of the shortest context, for both models."""
    contexts = [context_length(source.name, source.commit) for source in sources if not source.adapter]
    shortest = min(filter(None, contexts), default=None)
    for task in tasks:
        if shortest and task.max_new_tokens >= shortest > 1:
            print(f"note: {task.name}: a budget of {task.max_new_tokens} new tokens leaves no room for a "
                  f"prompt in the context of {shortest}; it is {shortest // 2}", file=sys.stderr)
            task.max_new_tokens = shortest // 2
        # where a prompt is too long it loses its beginning, which of these would be a mark
        room = (shortest or sys.maxsize) - task.max_new_tokens - MARKS
        if task.suffix_tokens and task.context_tokens + task.suffix_tokens > room:
            task.suffix_tokens = max(1, min(task.suffix_tokens, room // 3))
            task.context_tokens = min(task.context_tokens, max(1, room - task.suffix_tokens))
            task.asked.clear()  # which was made with more
            print(f"note: {task.name}: the context of {shortest} tokens has room for {task.context_tokens} "
                  f"before the cut and {task.suffix_tokens} behind", file=sys.stderr)
