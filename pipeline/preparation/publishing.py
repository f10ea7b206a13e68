"""The data set on the hub: Parquet files, the report and a card, and the raw file where it is asked for."""
import argparse
import json
import shutil
from collections import Counter
from typing import Any

import datasets

from pipeline.data.clean_file import SPLITS
from pipeline.hub.client import push_folder
from pipeline.methods.method_files import FOLDER as METHODS
from pipeline.preparation.data_set_report import leakage_table
from pipeline.run.hashes import hash_files
from pipeline.run.manifests import sealed_manifest
from pipeline.run.outputs import atomic_folder, output_lock, write_json


def publish(args: argparse.Namespace, counts: Counter, leakage: dict[str, Any]) -> None:
    """Publish the splits as Parquet, report and card, with --publish_raw the raw file too, to
    --hf_repository in one commit."""
    staged = args.output_dir.with_name(f"{args.output_dir.name}.hub")
    with output_lock(staged), atomic_folder(staged) as folder:
        for source, name in ((args.output_dir, "data"), (args.output_dir / "files", "files"),
                             (args.output_dir / METHODS, METHODS)):
            if not source.is_dir():  # without a grammar there are no methods
                continue
            (folder / name).mkdir()
            for split, data in datasets.load_from_disk(str(source)).items():
                data.to_parquet(str(folder / name / f"{split}.parquet"))
        if args.publish_raw:
            (folder / "raw").mkdir()
            shutil.copyfile(args.input_file, folder / "raw" / args.input_file.name)
        for name in ("report.md", "report.png"):
            shutil.copyfile(args.output_dir / name, folder / name)
        manifest = json.loads((args.output_dir / "manifest.json").read_bytes())
        (folder / "README.md").write_text(data_set_card(args, manifest, counts, leakage), encoding="utf-8")
        write_json(folder / "manifest.json", sealed_manifest({**manifest, "outputs": hash_files(folder)}))
    commit = push_folder(staged, args.hf_repository, "Add the data set", repo_type="dataset",
                         public=args.public, allow_secrets=args.allow_secrets)
    shutil.rmtree(staged)
    print(f"published data set {args.hf_repository} (commit {commit})")


def data_set_card(args: argparse.Namespace, manifest: dict[str, Any], counts: Counter,
                  leakage: dict[str, Any]) -> str:
    """Return the data set's README.md: what `load_dataset` reads, where it comes from, what is in it, what
    leaks."""
    lines = ["---", "task_categories:", "- text-generation", "tags:", "- code", "configs:"]
    methods = [split for split in SPLITS if counts[f"methods in {split}"]]
    for config, place, splits in (("default", "data", SPLITS), ("files", "files", SPLITS),
                                  *([(METHODS, METHODS, methods)] if methods else [])):
        lines += [f"- config_name: {config}", "  data_files:"]
        for split in splits:
            lines += [f"  - split: {split}", f"    path: {place}/{split}.parquet"]
    lines += ["---", f"# {args.hf_repository}", "",
              f"Pairs of prompt and completion: a chunk of about {args.chunk_tokens} tokens of "
              f"{args.model_name_or_path}, and the chunk that follows it in its file. Splits are made by "
              "file and by cluster of near-duplicates.", "",
              "```python", "from datasets import load_dataset",
              f'data = load_dataset("{args.hf_repository}")',
              f'files = load_dataset("{args.hf_repository}", "files")  # whole cleaned files',
              *([f'methods = load_dataset("{args.hf_repository}", "{METHODS}")  # signature, KDoc, body']
                if methods else []), "```", "",
              *([f"`raw/{args.input_file.name}` holds the source files as they were collected, one JSON "
                 "object a line.", ""] if args.publish_raw else []),
              "## Sources", "",
              "| repository | commit | licence | its file |", "|---|---|---|---|"]
    lines += [f"| {s['repository']} | {s['commit'] or ''} | {s.get('license') or 'not known'} "
              f"| {s['license_file'] or 'not found'} |" for s in manifest["sources"]]
    lines += ["", "The code keeps the licences of these sources.", "", "## Counts", "", "| | |", "|---|---:|"]
    lines += [f"| {name} | {number:,} |" for name, number in sorted(counts.items())]
    return "\n".join([*lines, "", "## Leakage from train into test", "", *leakage_table(leakage)]) + "\n"
