"""The sets that both models are evaluated on: Python once, and Kotlin with each length of context."""
import argparse
import sys
from collections.abc import Sequence

from pipeline.evaluation.candidates import Candidate
from pipeline.evaluation.processes import ALONE, Processes
from pipeline.evaluation.sample_size import choose_sample
from pipeline.fim.fim_set import infilling_task
from pipeline.methods.method_set import methods_task
from pipeline.model.device import context_length
from pipeline.model.model_source import ModelSource
from pipeline.retrieval.snippet_set import repository_task
from pipeline.tasks.codexglue import codexglue_task
from pipeline.tasks.completion_set import chunk_tokens, kotlin_task
from pipeline.tasks.task import Task

MARKS = 8  # tokens of a prompt that mark its parts and begin it, at most


def make_tasks(args: argparse.Namespace, candidates: Sequence[Candidate], precision: str,
               processes: Processes = ALONE) -> list[Task]:
    """Return the tasks, the same in all processes; the base's tokenizer counts the context of the prompts
    that reports show."""
    base, tuned = candidates
    tokenizer, form = base.tokenizer, base.forms.repository
    fim = (base.forms.fim, tuned.forms.fim) if tuned.forms.fim else None
    contexts = list(dict.fromkeys(args.context_tokens))
    budget = args.max_new_tokens or chunk_tokens(args.dataset)
    # a measured rate differs between processes, and so might what is drawn
    lengths = contexts + [max(contexts) + args.suffix_tokens] * (fim is not None)
    if args.repository_tokens:  # each of these a second time, with repository context
        lengths += [length + args.repository_tokens for length in lengths[len(contexts) - 1:]]
    sample = processes.agree(lambda: choose_sample(args.sample, base.source, lengths, budget, precision))
    if args.sample is None and processes.rank == 0:
        print(f"{sample} examples of each set (--sample chooses)", file=sys.stderr)
    kotlin = [kotlin_task(args.dataset, sample, args.seed, budget, context, tokenizer, verify=not number)
              for number, context in enumerate(contexts)]  # what is verified once need not be again
    if not any(kotlin):  # the data set has no files for any of the contexts
        kotlin = [kotlin_task(args.dataset, sample, args.seed, budget)]
    kotlin = list(filter(None, kotlin))
    longest = max(kotlin, key=lambda task: task.tokens.context)
    of_longest = [longest]  # without and with repository context
    if args.repository_tokens:
        of_longest.append(repository_task(longest, args.dataset, args.repository_tokens, form, tokenizer,
                                          args.output_dir))
    kotlin.extend(of_longest[1:])
    if fim is not None:
        kotlin.extend(infilling_task(task, args.suffix_tokens, fim) for task in filter(None, of_longest))
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
        # a prompt that is too long loses its beginning, which in FIM form is a mark
        room = (shortest or sys.maxsize) - task.max_new_tokens - MARKS
        context, suffix, _ = task.tokens
        if suffix and context + suffix > room:
            suffix = max(1, min(suffix, room // 3))
            context = min(context, max(1, room - suffix))
            task.tokens = task.tokens._replace(context=context, suffix=suffix)
            print(f"note: {task.name}: the context of {shortest} tokens has room for {context} before the "
                  f"cut and {suffix} after the completion", file=sys.stderr)
