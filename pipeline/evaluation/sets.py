"""The sets that the models are asked: Python once, and Kotlin behind each length of context."""
import argparse
import sys
from typing import Any

from pipeline.evaluation.candidates import ModelSource
from pipeline.evaluation.codexglue import codexglue_task
from pipeline.evaluation.planning import choose_sample
from pipeline.evaluation.processes import ALONE, Processes
from pipeline.evaluation.tasks import Task, chunk_tokens, kotlin_task


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
