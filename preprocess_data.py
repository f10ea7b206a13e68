"""Stage 2 of 5: clean the source files and cut them into (prompt, completion) examples.

Reads   data/kotlin_code_raw.jsonl             {"file_text": str}, and the provenance beside it
Writes  data/kotlin_prepared_dataset/          train, validation, test: {"prompt": str, "completion": str,
                                               "source_line": int, "start": int}; report.md and report.png
        data/kotlin_prepared_dataset/files/    the same splits as whole cleaned files: {"text": str,
                                               "source_line": int, "repository", "path", "license_file"}
        data/kotlin_prepared_dataset/methods/  the functions whose body is a block of 3 to 256 tokens, as
                                               their grammar finds them: {"signature", "docstring", "body",
                                               "source_line", "start", "path"}; and as SPLIT.jsonl in
                                               CodeXGLUE's fields
        data/kotlin_prepared_dataset/dropped.jsonl     each file that was dropped or cut, and why

A file loses its copyright comments, is dropped where it is too short, generated, repeats itself, or is a
near-duplicate of another, and is cut into chunks of at most --chunk_tokens tokens, each at the best place
near its end.  An example is a prompt of one chunk and, as its completion, the chunk that follows it; in train
the window slides by --stride_tokens, in validation and test by a whole chunk, so that each position is
evaluated once.  Splits are made by file and by near-duplicate group, from a hash of the
content and the seed: no file is on two sides.  A file that is added can move others, to a test of the same
size; --keep_splits moves none.

Memory: half a megabyte of text or one file for each process, and 0.6 kB for each file and method (hashes of
its token 5-grams; of a large file, half a byte per token); nothing grows with the number of examples.  Time:
linear in the size of the input, divided by the number of cores.

Run:    python preprocess_data.py
Quick:  python preprocess_data.py --limit 200
"""
import argparse
import os
import shutil
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.data.large_values import MAX_DIGIT_RUN, MAX_UNBROKEN_RUN
from pipeline.run.errors import PipelineError, looks_like_path
from pipeline.run.hashes import combined_hash, hash_files, sha256_file
from pipeline.run.manifests import check_manifest, write_manifest
from pipeline.run.outputs import atomic_folder, check_data_set_path, check_replaceable, output_lock
from pipeline.run.stage import duration, fraction, non_negative_int, positive_int, run_stage


def preprocess(args: argparse.Namespace) -> None:
    """Write the data set of --input_file to --output_dir."""
    started = time.time()
    # What is heavy waits until the arguments are known to be good.
    from pipeline.model.tokenizers import tokenizer_json
    from pipeline.preparation.cleaning import DroppedFiles
    from pipeline.preparation.cutting import Choice
    from pipeline.preparation.splits import assign_splits, size_notes, split_by_file
    from pipeline.preparation.statistics import Statistics
    from pipeline.preparation.workers import (
        clean_corpus,
        count_examples,
        leakage_in_spool,
        read_spool,
        worker_pool,
    )

    raw_manifest = check_arguments(args)
    counts: Counter = Counter()
    with output_lock(args.output_dir), atomic_folder(args.output_dir) as folder:
        scratch = folder / "scratch"
        scratch.mkdir()
        with (worker_pool(args, tokenizer_json(args.model_name_or_path)) as pool,
              open(folder / "dropped.jsonl", "w", encoding="utf-8", newline="\n") as dropped_file):
            # These stand on datasets and matplotlib: a second, in which the worker processes start.
            from pipeline.methods.method_files import write_methods
            from pipeline.preparation.data_set_report import draw_report, report_text
            from pipeline.preparation.earlier import Earlier
            from pipeline.preparation.publishing import publish
            from pipeline.preparation.writing import write_data_set

            earlier, dropped = Earlier(args.keep_splits), DroppedFiles(dropped_file)
            with open(scratch / "spool", "wb") as spool, open(scratch / "methods", "wb") as methods:
                corpus, places = clean_corpus(args, pool, spool, methods, counts, dropped, earlier.side_of)
            if not corpus.digests:
                raise PipelineError(f"{args.input_file}: no file can serve "
                                    f"({describe(counts) or 'it is empty'}); check it, "
                                    "or the --keep_ switches")
            usual = Choice(args.keep_large_values, args.keep_trivial)
            earlier.add_to(corpus, args, pool)
            plan = assign_splits(corpus, args, count_examples(scratch / "spool", places, usual))
            choice = replace(usual, seed=args.seed, caps=plan.caps)
            ways = {"by file, duplicates kept": (split_by_file(corpus.digests, plan, args.seed), usual),
                    "this data set": (plan.splits, choice)}
            leaking = pool.submit(leakage_in_spool, scratch / "spool", ways)
            statistics = Statistics(args.chunk_tokens)
            write_data_set(read_spool(scratch / "spool", len(places)), plan, args, choice, scratch, folder,
                           counts, statistics, dropped)
            drawing = pool.submit(draw_report, counts, statistics, folder / "report.png")
            if not args.no_methods:
                write_methods(lambda name: read_spool(scratch / name, len(places)), plan.splits, args,
                              scratch, folder, counts)
            leakage = leaking.result()
            drawing.result()
        notes = size_notes(*plan.sizes["test"], args.min_test_examples)
        report = report_text(counts, statistics, leakage, folder, found_files(raw_manifest), notes, args.seed)
        (folder / "report.md").write_text(report, encoding="utf-8")
        shutil.rmtree(scratch)
        write_outputs_manifest(folder, args, raw_manifest, counts, leakage, started)
    for note in notes:
        print(note, file=sys.stderr)
    show_result(args, counts, leakage["this data set"]["without trivial ones"], started)
    if args.hf_repository:
        publish(args, counts, leakage)


def write_outputs_manifest(folder: Path, args: argparse.Namespace, raw_manifest: dict[str, Any] | None,
                           counts: Counter, leakage: dict[str, Any], started: float) -> None:
    """Write the manifest of the data set that lies in `folder`."""
    outputs = hash_files(folder)
    # Without state.json, which differs in every run.
    arrow = {name: digest for name, digest in outputs.items() if name.endswith(".arrow")}
    sources = [{key: source.get(key) for key in ("repository", "commit", "license_file", "license")}
               for source in (raw_manifest or {}).get("sources", [])]
    write_manifest(folder / "manifest.json", args, outputs, started, data_hash=combined_hash(arrow),
                   inputs={args.input_file.name: sha256_file(args.input_file)}, counts=dict(counts),
                   leakage=leakage, sources=sources)


def found_files(raw_manifest: dict[str, Any] | None) -> int:
    """Return how many files stage 1 found, by the raw file's manifest; 0 where that is not known."""
    sources = (raw_manifest or {}).get("sources", [])
    return sum(source.get("files") or 0 for source in sources if isinstance(source, dict))


def check_arguments(args: argparse.Namespace) -> dict[str, Any] | None:
    """Return the manifest of --input_file, if it has one; PipelineError where the arguments cannot work."""
    if args.validation_fraction + args.test_fraction >= 1:
        raise PipelineError("--validation_fraction and --test_fraction leave nothing to train on; lower them")
    if not args.input_file.is_file():
        raise PipelineError(f"--input_file {args.input_file}: no such file; run parse_data.py first, or name "
                            "another file")
    check_replaceable(args.output_dir, "dataset_dict.json")
    check_data_set_path(args.output_dir)
    if args.keep_splits and looks_like_path(args.keep_splits) and not Path(args.keep_splits).is_dir():
        raise PipelineError(f"--keep_splits {args.keep_splits}: no such folder; name an earlier data set")
    if args.hf_repository:
        from pipeline.hub.client import check_hub_write  # 0.3 s, and only where something is to be published

        check_hub_write(args.hf_repository, "dataset")
    return check_manifest(args.input_file)


def show_result(args: argparse.Namespace, counts: Counter, leakage: dict[str, float], started: float) -> None:
    """Print the counts that are not zero, what of the test stands in train, and what was written."""
    for name, number in sorted((+counts).items()):
        print(f"  {number:>9,} {name}")
    print(f"  leakage: {leakage['verbatim_in_train']:.1%} of the test completions stand verbatim in train, "
          f"{leakage['any_13_gram_in_train']:.1%} share a run of 13 tokens with it (imports and lone "
          "brackets aside)")
    print(f"wrote {args.output_dir} (report.md says what is in it) in {duration(time.time() - started)}")


def describe(counts: Counter) -> str:
    """Return the counts on one line."""
    return ", ".join(f"{number} {name}" for name, number in sorted(counts.items()))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script's command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--input_file", type=Path, default=Path("data/kotlin_code_raw.jsonl"),
        help="the raw file (default: %(default)s)")
    add("--output_dir", type=Path, default=Path("data/kotlin_prepared_dataset"),
        help="folder of the data set; replaced if this script wrote it (default: %(default)s)")
    add("--hf_repository", help="publish the data set to this hub repository (default: stay local)")
    add("--public", action="store_true",
        help="a --hf_repository that is missing is made public (default: private)")
    add("--allow_secrets", action="store_true",
        help="publish although a text holds private keys or tokens (default: refuse)")
    add("--publish_raw", action="store_true", help="publish the raw file too (default: the data set alone)")
    add("--model_name_or_path", default="microsoft/phi-1_5",
        help="model whose tokenizer counts (default: %(default)s)")
    add("--chunk_tokens", type=positive_int, default=100,
        help="length of a chunk, in tokens (default: %(default)s)")
    add("--stride_tokens", type=positive_int, default=35,
        help="by how many tokens the window slides in train (default: %(default)s)")
    add("--test_fraction", type=fraction, default=0.01, help="share of the files (default: %(default)s)")
    add("--validation_fraction", type=fraction, default=0.01,
        help="share of the files (default: %(default)s)")
    add("--min_test_examples", type=non_negative_int, default=200,
        help="the test, and the validation, take more of a small corpus until they have so many examples of "
             "10 files, at most a fifth of the files (validation: a tenth); 0: the fractions alone (default: "
             "%(default)s)")
    add("--keep_splits", metavar="DATASET",
        help="folder or hub name of an earlier data set: its files keep their splits, by their paths, and "
             "what is much like one of them follows it (default: a hash decides)")
    add("--max_examples_per_file", type=non_negative_int, default=500,
        help="examples that one file gives to train at most, drawn with the seed; 0: all (default: "
             "%(default)s)")
    add("--near_duplicates", choices=("drop", "keep"), default="drop",
        help="drop: one file of a cluster of near-duplicates is kept; keep: all, in one split "
             "(default: %(default)s)")
    add("--keep_copyright", action="store_true", help="leave copyright comments in place")
    add("--keep_short", action="store_true", help="keep files with fewer than two lines")
    add("--keep_generated", action="store_true", help="keep files that say that a machine generated them")
    add("--keep_repetitive", action="store_true",
        help="keep files that repeat themselves: their distinct runs of 5 tokens are under 10 %% of their "
             "tokens")
    add("--keep_trivial", action="store_true",
        help="keep test examples whose completion holds nothing but imports, package lines and brackets")
    add("--keep_large_values", action="store_true",
        help=f"keep examples with {MAX_DIGIT_RUN} digits or {MAX_UNBROKEN_RUN} characters without white "
             "space in a row")
    add("--drop_secrets", action="store_true",
        help="leave out files that hold private keys or tokens of well-known services (default: count them)")
    add("--no_methods", action="store_true",
        help="do not parse the files, and write no methods/")
    add("--seed", type=int, default=0, help="of the splits (default: %(default)s)")
    add("--limit", type=non_negative_int, default=0,
        help="read only so many files; 0: all (default: %(default)s)")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    add("--num_proc", type=positive_int, default=cores,
        help="processes; the result does not depend on it (default: all cores)")
    return parser


def main(argv: list[str] | None = None) -> None:
    run_stage(preprocess, build_parser().parse_args(argv), any_bytes=("input_file",))


if __name__ == "__main__":
    main()
