"""Near-duplicates: CPU seconds and memory at 1, 10 and 100 copies of a corpus.

Each copy of a file is made distinct by small edits: one token in EDITED, drawn for the copy, becomes another.
Copies of a file are then near-duplicates.  Measured is what stage 2
does to find them, after tokenization: shingles to the disk, groups at 0.7, groups at 0.5 or containment.
Other runs:  --kind headers: unlike files that all begin with one licence header of 40 shingles.

Run:    python perf/duplicates.py --raw_file RAW --model_name_or_path MODEL
"""
import argparse
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from measure import ROOT, machine

sys.path.insert(0, str(ROOT))
from pipeline.data.near_duplicates import (
    DUPLICATE,
    SAME_SPLIT,
    ShingleSets,
    near_duplicate_groups,
    shingles_of,
)

EDITED = 200  # tokens, of which one is changed in a copy


def token_ids(raw: Path, tokenizer_folder: Path, files: int) -> list[np.ndarray]:
    """Return the (tokens,) ids of the first texts of a raw file that have any."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    with open(raw, encoding="utf-8") as lines:
        texts = [json.loads(line)["file_text"] for line in itertools.islice(lines, files)]
    ids = (np.array(tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.uint32) for text in texts)
    return [found for found in ids if len(found)]


def copies_of(files: list[np.ndarray], copies: int, kind: str) -> Iterator[np.ndarray]:
    """Yield the ids of all copies of the files; of `headers`, of as many files that share their begin."""
    draw = np.random.default_rng(0)
    for copy in range(copies):
        for ids in files:
            ids = ids.copy()
            if kind == "headers":
                ids[40:] = draw.integers(0, 1 << 20, len(ids[40:]))
                ids[:40] = np.arange(min(40, len(ids)))
            elif copy:
                ids[draw.random(len(ids)) < 1 / EDITED] = (1 << 20) + copy
            yield ids


def measure(args: argparse.Namespace) -> None:
    """Print what one run takes."""
    files = token_ids(args.raw_file, args.model_name_or_path, args.files)
    with tempfile.TemporaryDirectory() as folder:
        begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        sets, making = ShingleSets(Path(folder) / "sets"), time.process_time()
        for ids in copies_of(files, args.copies[0], args.kind):
            sets.add(shingles_of(ids))
        grouping = time.process_time()
        kept, numbers = len(sets.kept) + 24 * len(sets), []
        for rule in (DUPLICATE, SAME_SPLIT):
            numbers.append(len(set(near_duplicate_groups(sets, rule).tolist())))
        ended = time.process_time()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - begun
    print(f"{args.kind}, {args.copies[0]:>3} copies, {len(sets):,} files: "
          f"shingles {grouping - making:.1f} s, groups {ended - grouping:.1f} s of CPU; "
          f"{kept / len(sets) / 1e3:.2f} kB per file in memory, peak {peak / 1e3:.0f} MB; "
          f"groups {numbers[0]:,} and {numbers[1]:,}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw_file", type=Path, required=True)
    parser.add_argument("--model_name_or_path", type=Path, required=True,
                        help="folder with a tokenizer.json")
    parser.add_argument("--files", type=int, default=726, help="of the raw file (default: %(default)s)")
    parser.add_argument("--copies", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--kind", choices=("copies", "headers"), default="copies")
    args = parser.parse_args()
    if len(args.copies) == 1:
        measure(args)
        return
    print(machine(), flush=True)
    for copies in args.copies:  # in a process each: the peak is its own
        subprocess.run([sys.executable, __file__, "--raw_file", args.raw_file, "--model_name_or_path",
                        args.model_name_or_path, "--files", str(args.files), "--copies", str(copies),
                        "--kind", args.kind], check=True)


if __name__ == "__main__":
    main()
