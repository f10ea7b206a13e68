"""Stage 2 beside the usual recipe and beside tokenizing alone: seconds on a corpus of 34 MB, and memory.

    usual: langchain's RecursiveCharacterTextSplitter counting with the Hugging Face tokenizer, 100 tokens,
           neighbours paired, Dataset.from_list, save_to_disk: no de-duplication, white space at the cuts lost
    bare:  tokenizers.encode_batch over the same text on all cores, result thrown away
    stage: preprocess_data.py with stride = chunk, de-duplication, leakage report and pictures included

--copies N measures the stage's memory on the corpus taken N times over, each copy made distinct; --large_mb
N that of its largest process on N files of 1 MB each; --before names a checkout of another version, which is
run beside this one, and the usual recipe is left out.

Run:    python perf/preprocess.py --model_name_or_path MODEL
"""
import argparse
import itertools
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import ROOT, SHARED, Run, alternate, machine, median, run, skip

CORPUS = SHARED / "corpus" / "make_git_repo.sh"

USUAL = """
import json, sys
from langchain_text_splitters import RecursiveCharacterTextSplitter
from transformers import AutoTokenizer
from datasets import Dataset
tokenizer = AutoTokenizer.from_pretrained(sys.argv[2])
make = RecursiveCharacterTextSplitter.from_huggingface_tokenizer
splitter, rows = make(tokenizer, chunk_size=100, chunk_overlap=0), []
for line in open(sys.argv[1], encoding="utf-8"):
    chunks = splitter.split_text(json.loads(line)["file_text"])
    rows += [{"prompt": a, "completion": b} for a, b in zip(chunks, chunks[1:])]
Dataset.from_list(rows).train_test_split(0.02, seed=0).save_to_disk(sys.argv[3])
"""
BARE = """
import itertools, json, sys
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[2] + "/tokenizer.json")
with open(sys.argv[1], encoding="utf-8") as file:
    while batch := [json.loads(line)["file_text"] for line in itertools.islice(file, 1000)]:
        tokenizer.encode_batch(batch, add_special_tokens=False)
"""


def make_raw(folder: Path) -> Path:
    """Collect the corpus into a raw file."""
    subprocess.run(["bash", CORPUS, folder / "repository"], check=True, stdout=subprocess.DEVNULL)
    run([sys.executable, ROOT / "parse_data.py", "--repo_url", (folder / "repository").as_uri(),
         "--clone_path", folder / "clone", "--output_file", folder / "raw.jsonl"])
    return folder / "raw.jsonl"


def multiply(raw: Path, copies: int) -> Path:
    """Write the raw file `copies` times over, with other names in each: it is a near-duplicate of none."""
    target = raw.with_name(f"raw{copies}.jsonl")
    with open(target, "w", encoding="utf-8") as out:
        for copy in range(copies):
            with open(raw, encoding="utf-8") as lines:
                for line in lines:
                    text = json.loads(line)["file_text"]
                    if copy:
                        text = re.sub(r"\b([A-Za-z]\w{3,})\b", lambda m, n=copy: f"{m[1]}{n}", text)
                    out.write(json.dumps({"file_text": text}, ensure_ascii=False) + "\n")
    return target


def copied(raw: Path, folder: Path) -> Path:
    """Return a copy of the raw file in a folder that may be written to."""
    return shutil.copyfile(raw, folder / "copied.jsonl")


def large_files(raw: Path, number: int) -> Path:
    """Write a raw file of so many files of 1 MB: the corpus's own, strung together."""
    target, text, written = raw.with_name("large.jsonl"), "", 0
    with open(target, "w", encoding="utf-8") as out, open(raw, encoding="utf-8") as lines:
        for line in itertools.chain.from_iterable(itertools.repeat(lines.readlines())):
            text += json.loads(line)["file_text"]
            if len(text) >= 1_000_000:
                text = re.sub(r"\b([A-Za-z]\w{3,})\b", lambda m, n=written: f"{m[1]}{n}", text)[:1_000_000]
                out.write(json.dumps({"file_text": text}, ensure_ascii=False) + "\n")
                text, written = "", written + 1
                if written == number:
                    return target
    raise AssertionError("the loop has no end of its own")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", required=True, help="folder with a tokenizer.json")
    parser.add_argument("--raw_file", type=Path, help="measure on this raw file instead of the shared corpus")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--copies", type=int, default=10, help="for the memory; 0: leave that out")
    parser.add_argument("--large_mb", type=int, default=62, help="for the memory; 0: leave that out")
    parser.add_argument("--before", type=Path, help="a checkout of another version, run beside this one")
    parser.add_argument("--num_proc", type=int, help="processes of the stage (default: its own)")
    args = parser.parse_args()
    if not args.raw_file and not CORPUS.is_file():
        skip("the corpus is not there; name a --raw_file")
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        raw = args.raw_file or make_raw(root)

        def stage(source: Path = raw, code: Path = ROOT) -> Run:
            processes = ["--num_proc", args.num_proc] if args.num_proc else []
            return run([sys.executable, code / "preprocess_data.py", "--input_file", source, "--output_dir",
                        root / "dataset", "--model_name_or_path", args.model_name_or_path, "--stride_tokens",
                        "100", *processes])

        def script(code: str) -> Run:
            return run([sys.executable, "-c", code, raw, args.model_name_or_path, root / "usual"])

        print(f"{machine()}; {raw.stat().st_size / 1e6:.1f} MB", flush=True)
        if args.before:
            results = alternate(args.runs, stage=stage, before=lambda: stage(code=args.before))
        else:
            results = alternate(args.runs, stage=stage, bare=lambda: script(BARE))
        seconds = {name: median([r.seconds for r in runs]) for name, runs in results.items()}
        for name in seconds.keys() - {"stage"}:
            print(f"preprocess_data.py / {name}: {seconds['stage']:.1f} s / {seconds[name]:.1f} s = "
                  f"{seconds['stage'] / seconds[name]:.2f}", flush=True)
        if not args.before:
            usual = script(USUAL)  # it takes minutes: once
            print(f"usual recipe / preprocess_data.py: {usual.seconds:.1f} s / {seconds['stage']:.1f} s = "
                  f"{usual.seconds / seconds['stage']:.1f}", flush=True)
        if args.large_mb:
            large = stage(large_files(copied(raw, root), args.large_mb))
            print(f"{args.large_mb} files of 1 MB: {large.peak_process / 1e6:.0f} MB in the largest process, "
                  f"{large.peak_bytes / 1e6:.0f} MB in all ({large.seconds:.0f} s)", flush=True)
        once = max(results["stage"], key=lambda r: r.peak_bytes)
        if args.copies:
            many = stage(multiply(copied(raw, root), args.copies))
            print(f"peak memory of preprocess_data.py, all processes: {once.peak_bytes / 1e6:.0f} MB once, "
                  f"{many.peak_bytes / 1e6:.0f} MB for {args.copies} distinct copies ({many.seconds:.0f} s); "
                  f"without pages of files: {once.peak_anonymous / 1e6:.0f} MB and "
                  f"{many.peak_anonymous / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
