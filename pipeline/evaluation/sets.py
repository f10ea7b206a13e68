"""The sets that the models are asked: Python once, and Kotlin behind each length of context."""
import argparse
import sys
from typing import Any

from pipeline.evaluation.candidates import ModelSource
from pipeline.evaluation.codexglue import codexglue_task
from pipeline.evaluation.planning import choose_sample
from pipeline.evaluation.processes import ALONE, Processes
from pipeline.evaluation.tasks import Task, chunk_tokens, kotlin_task
from pipeline.models import context_length


def make_tasks(args: argparse.Namespace, base: ModelSource, tokenizer: Any, precision: str,
               processes: Processes = ALONE) -> list[Task]:
    """Return the tasks, the same in all processes; `tokenizer`, the base's, counts the context of the prompts
    that are shown."""
    contexts = list(dict.fromkeys(args.context_tokens))
    budget = args.max_new_tokens or chunk_tokens(args.dataset)
    # a measured rate differs between processes, and so might what is drawn
    sample = processes.agree(lambda: choose_sample(args.sample, base, contexts, budget, precision))
    if args.sample is None and processes.rank == 0:
        print(f"{sample} examples of each set (--sample chooses)", file=sys.stderr)
    kotlin = [kotlin_task(args.dataset, sample, args.seed, budget, context, tokenizer)
              for context in contexts]
    if not any(kotlin):  # a context was asked for that the data set does not give
        kotlin = [kotlin_task(args.dataset, sample, args.seed, budget)]
    return [codexglue_task(args.codexglue_file, sample, args.seed), *filter(None, kotlin)]


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
