"""Methods in Kotlin: a check on held-out ones, what finding them costs, and what their stop rule costs.

    check:  each method of a split is put back into its file, which has to be the file to the byte; the stop
            rule reads what follows its opening brace, in the tokenizer's tokens, as far as the file goes, and
            has to end at the method's closing brace and at no other
    stage:  preprocess_data.py with methods and without, in turn; seconds of CPU of all processes, which
            suffer less from other work on the machine than wall-clock time
    decode: the methods are decoded as benchmarking.py does; then the tokens are given to the stop rule again,
            alone, and to what counts tokens without one: the difference is the rule's share

Run:    python perf/methods.py --model_name_or_path MODEL --dataset DATASET [--raw_file RAW] [--decode 16]
"""
import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import ROOT, machine, median, run, skip

sys.path.insert(0, str(ROOT))
from pipeline.data.datasets import draw, load_files, load_methods
from pipeline.decoding.greedy import Continuation, end_tokens, generate_batch, plan_batches
from pipeline.methods.block_end import BlockEnd, block_end
from pipeline.methods.method_set import methods_task, place_of
from pipeline.model.device import choose_precision, quiet_libraries, torch_dtype
from pipeline.model.tokenizers import encode_prompts, load_tokenizer
from pipeline.prompts.contexts import FileTexts
from pipeline.tasks.task import Task

MOST_CHARACTERS = 20_000  # of the file behind a method, that the stop rule reads


def check(args: argparse.Namespace, tokenizer: Any) -> None:
    """Print how many methods are put back to the byte, and where the stop rule ends them."""
    methods, texts = load_methods(args.dataset, args.split), FileTexts(load_files(args.dataset)[args.split])
    chosen = draw(len(methods), args.number, 0)
    back = ends = early = late = 0
    for row in methods.select(chosen):
        text = texts.text(row["source_line"])
        first, opened = place_of(row, text)  # that they stand in the file
        gap = text[first + len(row["docstring"]):row["start"]]
        prompt = text[:first] + row["docstring"] + gap + row["signature"]
        behind = text[opened + len(row["body"]):]
        back += (prompt + row["body"] + behind).encode() == text.encode() and prompt.endswith("{")
        rest = (row["body"] + behind)[:len(row["body"]) + MOST_CHARACTERS]
        rule, found, decoded = BlockEnd(), None, 0
        for token in tokenizer(rest, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]:
            found = rule.feed(rest[decoded:token[1]])
            decoded = max(decoded, token[1])
            if found is not None:
                break
        ends += found == len(row["body"]) == block_end(rest)
        early += found is not None and found < len(row["body"])
        late += found is None or found > len(row["body"])
    print(f"check, {len(chosen)} methods of {args.split}: put back to the byte {back}; the stop rule ends "
          f"{ends} at their brace, {early} before, {late} behind or not at all", flush=True)


def stage(args: argparse.Namespace) -> None:
    """Print the CPU seconds of stage 2 with methods and without."""
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.runs):
            for name, flags in (("without", ["--no_methods"]), ("with", [])):
                before = resource.getrusage(resource.RUSAGE_CHILDREN)
                run([sys.executable, ROOT / "preprocess_data.py", "--input_file", args.raw_file,
                     "--output_dir", Path(folder) / "data", "--model_name_or_path", args.model_name_or_path,
                     "--limit", str(args.limit), *flags])
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                seconds[name].append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    found = {name: median(values) for name, values in seconds.items()}
    print(f"stage 2 on {args.limit or 'all'} files: {found['with']:.1f} s of CPU with methods, "
          f"{found['without']:.1f} s without: {found['with'] / found['without']:.2f} times", flush=True)


def replayed(tokenizer: Any, task: Task, ends: set[int], texts: list[list[int]]) -> float:
    """Return the CPU seconds that it takes to give the tokens to the task's rule, the least of some."""
    best = float("inf")
    for _ in range(5):
        written, begun = [Continuation(tokenizer, task, ends, []) for _ in texts], time.process_time()
        for row, tokens in zip(written, texts, strict=True):
            for token in tokens:
                row.add(token)
        best = min(best, time.process_time() - begun)
    return best


def decode(args: argparse.Namespace, tokenizer: Any) -> None:
    """Print the share of the stop rule in decoding the set."""
    import torch
    from transformers import AutoModelForCausalLM

    quiet_libraries()
    task = methods_task(args.dataset, args.decode, 0, 0, args.context_tokens, tokenizer)
    free = Task(task.name, [], task.max_new_tokens, task.normalize, None)
    precision = choose_precision("auto")
    model = AutoModelForCausalLM.from_pretrained(args.model_name_or_path, dtype=torch_dtype(precision)).eval()
    rows = encode_prompts(tokenizer, [example.prompt for example in task.examples])
    texts, begun, wall = [], time.process_time(), time.perf_counter()
    with torch.inference_mode():
        for batch in plan_batches([len(row) for row in rows], args.batch_size, task.max_new_tokens):
            texts += [result["text"] for result in generate_batch(model, tokenizer, [rows[i] for i in batch],
                                                                  task)]
    cpu, wall = time.process_time() - begun, time.perf_counter() - wall
    tokens = tokenizer(texts, add_special_tokens=False)["input_ids"]
    ends = end_tokens(model, tokenizer)
    replayed(tokenizer, task, ends, tokens[:1])  # the tokens with a brace are looked up once
    rule = replayed(tokenizer, task, ends, tokens) - replayed(tokenizer, free, ends, tokens)
    number = sum(map(len, tokens))
    print(f"decode, {len(rows)} methods, {number} tokens, {precision}, {torch.get_num_threads()} threads: "
          f"{cpu:.1f} s of CPU ({wall:.1f} s); the stop rule {1e3 * rule:.1f} ms = {rule / cpu:.3%}, "
          f"{1e6 * rule / max(1, number):.1f} µs a token", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model_name_or_path", required=True, help="model folder; its tokenizer is enough without --decode")
    add("--dataset", required=True, help="folder that preprocess_data.py wrote with this model")
    add("--split", default="test", help="(default: %(default)s)")
    add("--number", type=int, default=1000, help="of methods that are checked; 0: all (default: %(default)s)")
    add("--raw_file", type=Path, help="measure stage 2 on this raw file (default: do not)")
    add("--limit", type=int, default=0, help="of its files; 0: all (default: %(default)s)")
    add("--runs", type=int, default=3, help="of stage 2 (default: %(default)s)")
    add("--decode", type=int, default=0, help="so many methods; 0: none (default: %(default)s)")
    add("--context_tokens", type=int, default=512, help="(default: %(default)s)")
    add("--batch_size", type=int, default=16, help="(default: %(default)s)")
    args = parser.parse_args()
    if not Path(args.dataset).is_dir():
        skip(f"{args.dataset} is not there")
    tokenizer = load_tokenizer(args.model_name_or_path)
    print(machine(), flush=True)
    check(args, tokenizer)
    if args.raw_file:
        stage(args)
    if args.decode:
        decode(args, tokenizer)


if __name__ == "__main__":
    main()
