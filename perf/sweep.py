"""Which settings of stage 3 learn most: train.py with one setting changed at a time, on the same examples.

Every run sees the same number of training examples, hence of tokens; the seconds of each run's training are
beside its loss, because rank, batch and schedule change them a little.  What a run gave is appended to
--output, and a run that is there already is not repeated.

Run:    python perf/sweep.py --model_name_or_path MODEL --dataset DATASET --output sweep.jsonl
"""
import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import ROOT, machine

CENTER = {"learning_rate": 1e-3, "lora_r": 64, "examples_per_step": 16, "lr_scheduler_type": "cosine"}
CHANGES: list[dict[str, Any]] = [
    {}, {"lora_r": 16}, {"learning_rate": 2e-3}, {"examples_per_step": 8}, {"examples_per_step": 32},
    {"lr_scheduler_type": "constant_with_warmup"}, {"learning_rate": 5e-4}, {"lora_r": 256}]
LEARNING_RATES = (3e-4, 1e-3, 3e-3, 1e-2)


def run_training(args: argparse.Namespace, settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run train.py with these settings and return its summary."""
    steps = args.examples // settings["examples_per_step"]
    command = [sys.executable, ROOT / "train.py", "--model_name_or_path", args.model_name_or_path,
               "--dataset", args.dataset, "--output_dir", folder / "adapter", "--quantization", "none",
               "--max_train_samples", args.examples, "--max_validation_samples", args.validation_examples,
               "--eval_steps", steps, "--overwrite", "--seed", args.seed, "--precision", args.precision]
    for name, value in settings.items():
        command += [f"--{name}", value]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1]}
    return json.loads((folder / "adapter" / "manifest.json").read_bytes())["summary"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--output", type=Path, required=True, help="JSON lines, one a run")
    parser.add_argument("--examples", type=int, default=320)
    parser.add_argument("--validation_examples", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", default="auto", help="as train.py has it (default: %(default)s)")
    parser.add_argument("--learning_rates_only", action="store_true",
                        help="for a second model: is the best one of like size?")
    args = parser.parse_args()
    changes = [{"learning_rate": rate} for rate in LEARNING_RATES] if args.learning_rates_only else CHANGES
    lines = args.output.read_text().splitlines() if args.output.is_file() else []
    done = [json.loads(line) for line in lines]
    print(f"{machine()}; {args.examples} examples\n"
          "| learning rate | rank | examples a step | schedule | loss before | after | training, s |\n"
          "|---:|---:|---:|---|---:|---:|---:|", flush=True)
    for change in changes:
        settings = CENTER | change
        key = {"model": args.model_name_or_path, "examples": args.examples, "seed": args.seed, **settings}
        found = next((row for row in done if row["key"] == key), None)
        if not found:
            with tempfile.TemporaryDirectory() as folder:
                found = {"key": key, "summary": run_training(args, settings, Path(folder))}
            with open(args.output, "a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
        cells = [*settings.values()]
        if "error" in found["summary"]:
            cells.append(found["summary"]["error"])
        else:
            cells += [f"{found['summary'][f'validation_loss_{when}']:.4f}" for when in ("before", "after")]
            cells.append(f"{found['summary']['train_seconds']:.0f}")
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
