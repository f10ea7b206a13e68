"""Decoding of stage 5 beside transformers' `generate`: examples a second, on a Python and a Kotlin set.

    stage:    generate_batch in the batches of plan_batches, with the task's budget and stop rule
    recipe:   generate in batches of 10 in file order, 512 new tokens, no stop rule
    criteria: generate in the stage's batches with its budget, and its stop rule as a StoppingCriteria that
              ends each row

Greedy, in one process and one precision; only decoding is timed, not the load.  A set's last line is the
limit: every token of a prompt once, and every token written, through the matrix products of the model (2 FLOP
a weight; the head where a token is written) at the rate of a product of 2048 x 2048.  At the end, the share
of texts that are those of `generate` in float32, one prompt at a time.  Seconds are wall-clock time; seconds
of CPU stand beside the ratio, because they suffer less from other work on the machine.

Run:    python perf/benchmarking.py --model_name_or_path MODEL --dataset DATASET
"""
import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import ROOT, alternate, machine, median, run, skip

sys.path.insert(0, str(ROOT))
from pipeline.decoding.greedy import Continuation, end_tokens, generate_batch, plan_batches
from pipeline.model.device import choose_precision, quiet_libraries, torch_dtype
from pipeline.model.tokenizers import encode_prompts, load_tokenizer
from pipeline.tasks.codexglue import codexglue_task
from pipeline.tasks.completion_set import kotlin_task
from pipeline.tasks.task import Task

RECIPE_ROWS, RECIPE_TOKENS = 10, 512


@dataclass
class Timed:
    """What decoding some examples took."""
    seconds: float  # an example
    cpu_seconds: float  # an example, all threads
    texts: list[str]


def timed(decode: Callable[[], list[str]]) -> Timed:
    """Run `decode` and return what it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    texts = decode()
    return Timed((time.perf_counter() - wall) / len(texts), (time.process_time() - cpu) / len(texts), texts)


def by_stage(model: Any, tokenizer: Any, rows: list[list[int]], batches: list[list[int]], task: Task,
             written: list[int]) -> list[str]:
    """Return the texts of all rows as stage 5 decodes them, and append the tokens of each to `written`."""
    texts = [""] * len(rows)
    for batch in batches:
        results = generate_batch(model, tokenizer, [rows[i] for i in batch], task)
        for i, result in zip(batch, results, strict=True):
            texts[i] = result["text"]
            written.append(result["tokens"])
    return texts


def matrix_rate(dtype: Any) -> float:
    """Return the FLOP a second of a product of 2048 x 2048 matrices: the best of several."""
    import torch

    a, b = (torch.randn(2048, 2048, dtype=dtype) for _ in range(2))
    return 2 * 2048**3 / min(timed(lambda: [(a @ b).sum().item()]).seconds for _ in range(8))


def limit(model: Any, rows: list[list[int]], written: list[int]) -> float:
    """Return the examples a second that matrix products alone would allow."""
    head = model.get_output_embeddings().weight.numel()
    # a tied head counts once, and embeddings are no product
    body = sum(p.numel() for p in model.parameters() if p.ndim == 2) - head
    body -= 0 if model.config.tie_word_embeddings else head
    read = sum(map(len, rows)) + sum(written)
    return len(rows) * matrix_rate(model.dtype) / (2 * (body * read + head * (len(rows) + sum(written))))


def by_generate(model: Any, tokenizer: Any, rows: list[list[int]], batches: list[list[int]], task: Task,
                stop: bool = True) -> list[str]:
    """Return the texts of all rows by transformers' generate; `stop`: each row ends by the task's rule."""
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList

    class EndOfPrediction(StoppingCriteria):
        def __init__(self, written: list[Continuation]):
            self.written, self.done = written, [False] * len(written)

        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            for place, token in enumerate(input_ids[:, -1].tolist()):
                self.done[place] = self.done[place] or self.written[place].add(token)
            return torch.tensor(self.done, device=input_ids.device)

    texts, ends = [""] * len(rows), end_tokens(model, tokenizer)
    for batch in batches:
        longest = max(len(rows[i]) for i in batch)
        ids = torch.tensor([[tokenizer.eos_token_id] * (longest - len(rows[i])) + rows[i] for i in batch])
        mask = torch.tensor([[0] * (longest - len(rows[i])) + [1] * len(rows[i]) for i in batch])
        written = [Continuation(tokenizer, task, ends, rows[i]) for i in batch]
        criteria = StoppingCriteriaList([EndOfPrediction(written)] if stop else [])
        found = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=task.max_new_tokens,
                               pad_token_id=tokenizer.eos_token_id, stopping_criteria=criteria)
        for i, row, whole in zip(batch, written, found[:, longest:], strict=True):
            texts[i] = row.result()["text"] if stop else tokenizer.decode(whole, skip_special_tokens=True)
    return texts


def compare(args: argparse.Namespace, model: Any, tokenizer: Any, task: Task) -> None:
    """Print the two comparisons of one set."""
    rows = encode_prompts(tokenizer, [example.prompt for example in task.examples])
    batches = plan_batches([len(row) for row in rows], args.batch_size, task.max_new_tokens)
    free = Task(task.name, [], RECIPE_TOKENS, task.normalize, None)
    few = rows[:args.recipe_batches * RECIPE_ROWS]
    written: list[int] = []
    in_order = [list(range(i, min(i + RECIPE_ROWS, len(few)))) for i in range(0, len(few), RECIPE_ROWS)]
    found: Any = alternate(
        args.runs, stage=lambda: timed(lambda: by_stage(model, tokenizer, rows, batches, task, written)),
        criteria=lambda: timed(lambda: by_generate(model, tokenizer, rows, batches, task)),
        recipe=lambda: timed(lambda: by_generate(model, tokenizer, few, in_order, free, stop=False)))
    wall, cpu = ({name: median([getattr(one, key) for one in runs]) for name, runs in found.items()}
                 for key in ("seconds", "cpu_seconds"))
    most = limit(model, rows, written[-len(rows):])
    for name, what in (("recipe", f"the recipe on {len(few)}"),
                       ("criteria", "generate with stopping criteria")):
        print(f"{task.name}, {len(rows)} examples in batches of {' + '.join(str(len(b)) for b in batches)}: "
              f"{1 / wall['stage']:.2f} examples/s against {1 / wall[name]:.2f} ({what}) = "
              f"{wall[name] / wall['stage']:.2f} times; CPU seconds an example {cpu['stage']:.2f} against "
              f"{cpu[name]:.2f} = {cpu[name] / cpu['stage']:.2f} times", flush=True)
    print(f"{task.name}: matrix products alone would allow {most:.2f} examples/s: the stage is at "
          f"{1 / wall['stage'] / most:.0%} of it, and no program of this precision could be more than "
          f"{most * wall['criteria']:.2f} times as fast as generate", flush=True)


def same_texts(args: argparse.Namespace, model: Any, tokenizer: Any, task: Task) -> None:
    """Print how many texts of the stage in float32 are those of generate, one prompt at a time."""
    rows = encode_prompts(tokenizer, [example.prompt for example in task.examples])[:args.float32_examples]
    batches = plan_batches([len(row) for row in rows], args.batch_size, task.max_new_tokens)
    ours = by_stage(model, tokenizer, rows, batches, task, [])
    theirs = by_generate(model, tokenizer, rows, [[i] for i in range(len(rows))], task)
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    print(f"{task.name}: {same} of {len(rows)} texts in float32 are those of generate "
          f"({100 * same / len(rows):.0f} %)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model_name_or_path", required=True, help="model folder")
    add("--dataset", required=True, help="folder that preprocess_data.py wrote with this model")
    add("--codexglue_file", type=Path, required=True,
        help="the Python set; written by demo/make_python_benchmark.py if it is not there")
    add("--examples", type=int, default=128, help="of each set (default: %(default)s)")
    add("--batch_size", type=int, default=128,
        help="of the stage and of generate with criteria (default: %(default)s)")
    add("--recipe_batches", type=int, default=1,
        help="batches of the recipe, which takes long (default: %(default)s)")
    add("--float32_examples", type=int, default=16,
        help="of each set, for the comparison of texts (default: %(default)s)")
    add("--sets", nargs="+", choices=("python", "kotlin"), default=["python", "kotlin"],
        help="(default: both)")
    add("--context_tokens", type=int, default=0,
        help="of the Kotlin set, as benchmarking.py has it (default: one chunk)")
    add("--runs", type=int, default=3)
    args = parser.parse_args()
    if not Path(args.dataset).is_dir():
        skip(f"{args.dataset} is not there")
    import torch
    from transformers import AutoModelForCausalLM

    quiet_libraries()
    if not args.codexglue_file.is_file():
        run([sys.executable, ROOT / "demo" / "make_python_benchmark.py", args.codexglue_file])
    tokenizer, precision = load_tokenizer(args.model_name_or_path), choose_precision("auto")
    tasks = [codexglue_task(args.codexglue_file, args.examples, 0) if name == "python"
             else kotlin_task(args.dataset, args.examples, 0, 0, args.context_tokens, tokenizer)
             for name in args.sets]
    print(f"{machine()}, {torch.get_num_threads()} threads, {precision}, medians of {args.runs}", flush=True)
    for kind, compared in ((precision, compare), ("float32", same_texts)):
        model = AutoModelForCausalLM.from_pretrained(args.model_name_or_path, dtype=torch_dtype(kind)).eval()
        with torch.inference_mode():
            for task in tasks:
                compared(args, model, tokenizer, task)
        del model


if __name__ == "__main__":
    main()
