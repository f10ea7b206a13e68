"""Which recipe of stage 3 learns most from as many tokens: train.py with one setting changed at a time.

Every run computes about --tokens tokens, hence takes about the same time; what it computed, and the seconds
of its training, are beside its losses on the same held-out pairs, behind 512 tokens of their file and behind
one chunk.  What a run gave is appended to --output, and a run that is there already is not repeated.

Run:    python perf/sweep.py --model_name_or_path MODEL --dataset DATASET --output sweep.jsonl
"""
import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from measure import ROOT, machine
from peft import PeftModel
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(ROOT))
from pipeline.data.datasets import load_examples, load_files
from pipeline.data.encoded_examples import EncodedExamples
from pipeline.evaluation.losses import batch_losses
from pipeline.model.device import choose_precision, torch_dtype
from pipeline.model.tokenizers import load_tokenizer
from pipeline.training.training_data import ONE_CHUNK, encode_validation

CENTER: dict[str, Any] = {
    "train_on": "files", "sequence_tokens": 512, "end_of_text": "file_ends", "examples_per_step": 4,
    "learning_rate": 1e-3, "lora_r": 64, "lr_scheduler_type": "cosine"}
PAIRS = {"train_on": "pairs", "examples_per_step": 16}
CHANGES: dict[str, list[dict[str, Any]]] = {
    "recipes": [{}, PAIRS | {"end_of_text": "always"}, PAIRS, {"examples_per_step": 2},
                {"examples_per_step": 1}, {"sequence_tokens": 256},
                {"sequence_tokens": 256, "examples_per_step": 8}, {"sequence_tokens": 1024},
                {"learning_rate": 2e-3}, {"learning_rate": 5e-4}, {"lora_r": 16}],
    # for a second model: is the best rate one of like size?
    "learning_rates": [{"learning_rate": rate} for rate in (3e-4, 1e-3, 3e-3, 1e-2)]}
CONTEXTS = (512, 1024)  # tokens of the file, besides one chunk, behind which recipes are compared
TOKENS = re.compile(r"([\d,]+) tokens in ")  # of a line of train.py
PAIR_TOKENS = 190  # of JetBrains/kotlin's pairs of 100 + 100 tokens, on average
FULL_SHARE = 0.87  # of --sequence_tokens that a sequence is taken to have: the tables were measured with it


def examples_of(tokens: int, settings: dict[str, Any]) -> int:
    """Return how many examples have about so many tokens: whole steps of them."""
    each = PAIR_TOKENS if settings["train_on"] == "pairs" else FULL_SHARE * settings["sequence_tokens"]
    return max(1, round(tokens / each / settings["examples_per_step"])) * settings["examples_per_step"]


def run_training(args: argparse.Namespace, settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run train.py with these settings and return its summary."""
    examples = examples_of(args.tokens, settings)
    command = [sys.executable, ROOT / "train.py", "--model_name_or_path", args.model_name_or_path,
               "--dataset", args.dataset, "--output_dir", folder / "adapter", "--quantization", "none",
               "--max_train_samples", examples, "--max_validation_samples", args.validation_examples,
               "--eval_steps", examples // settings["examples_per_step"], "--overwrite",
               "--seed", args.seed, "--precision", args.precision]
    for name, value in settings.items():
        command += [f"--{name}", value]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1]}
    summary = json.loads((folder / "adapter" / "manifest.json").read_bytes())["summary"]
    summary["tokens"] = int(TOKENS.search(done.stdout + done.stderr)[1].replace(",", ""))
    summary["seconds"] = summary["tokens"] / summary["tokens_per_second"]  # of the steps, without validation
    return summary | {"losses": context_losses(args, folder / "adapter")}


def context_losses(args: argparse.Namespace, adapter: Path | None) -> list[float]:
    """Return the mean loss, in nats a token, of the validation's completions behind one chunk and behind each
    of CONTEXTS; the same for every recipe, whatever it was validated on while it trained."""
    dtype = torch_dtype(choose_precision(args.precision))
    model = AutoModelForCausalLM.from_pretrained(args.model_name_or_path, dtype=dtype)
    model = PeftModel.from_pretrained(model, str(adapter)).eval() if adapter else model.eval()
    tokenizer, splits = load_tokenizer(args.model_name_or_path), ("validation",)
    pairs, files = (load(args.dataset, splits)["validation"] for load in (load_examples, load_files))
    found: dict[int, float] = {}
    for context in CONTEXTS:
        settings = argparse.Namespace(
            dataset=args.dataset, max_validation_samples=args.validation_examples, seed=args.seed,
            sequence_tokens=context, max_length=context + 512, end_of_text="file_ends")
        behind_file, also = encode_validation(settings, tokenizer, pairs, files)
        for length, examples in ((context, behind_file), (0, also[ONE_CHUNK])):
            found[length] = mean_loss(model, examples)
    return [found[length] for length in sorted(found)]


def mean_loss(model: Any, examples: EncodedExamples) -> float:
    """Return the mean loss of the examples' labels, in nats a token."""
    rows = [(examples[i]["input_ids"], examples.prompt_lengths[i]) for i in range(len(examples))]
    with torch.inference_mode():
        losses = [batch_losses(model, [(ids[:prompt], ids[prompt:])])[0] for ids, prompt in rows]
    return sum(nats for nats, _ in losses) / sum(tokens for _, tokens in losses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--output", type=Path, required=True, help="JSON lines, one a run")
    parser.add_argument("--tokens", type=int, default=100_000, help="of each run (default: %(default)s)")
    parser.add_argument("--validation_examples", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", default="auto", help="as train.py has it (default: %(default)s)")
    parser.add_argument("--changes", choices=[*CHANGES], default="recipes")
    parser.add_argument("--first", type=int, default=len(CHANGES["recipes"]),
                        help="runs of the list, at most")
    args = parser.parse_args()
    lines = args.output.read_text().splitlines() if args.output.is_file() else []
    done = [json.loads(line) for line in lines]
    print(f"{machine()}; about {args.tokens:,} tokens a run; losses in nats a token\n"
          "| learned from | changed | tokens | training, s | behind one chunk | "
          + " | ".join(f"behind {context}" for context in CONTEXTS)
          + " |\n|---|---|" + "---:|" * (3 + len(CONTEXTS)), flush=True)
    for change in [None, *CHANGES[args.changes][:args.first]]:  # the base model first
        settings = CENTER | (change or {})
        key = {"model": args.model_name_or_path, "tokens": args.tokens, "seed": args.seed,
               **(settings if change is not None else {"base": True})}
        found = next((row for row in done if row["key"] == key), None)
        if not found:
            with tempfile.TemporaryDirectory() as folder:
                found = {"key": key, "summary": run_training(args, settings, Path(folder))
                         if change is not None else {"losses": context_losses(args, None)}}
            with open(args.output, "a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
        print(table_row(change, settings, found["summary"]), flush=True)


def table_row(change: dict[str, Any] | None, settings: dict[str, Any], summary: dict[str, Any]) -> str:
    """Return the line of the table."""
    cells = ["nothing (base)"] if change is None else [settings["train_on"]]
    cells.append(", ".join(f"{name} {value}" for name, value in (change or {}).items() if name != "train_on"))
    if "error" in summary:
        cells.append(summary["error"])
    else:
        cells += ["", ""] if change is None else [f"{summary['tokens']:,}", f"{summary['seconds']:.0f}"]
        cells += [f"{loss:.4f}" for loss in summary["losses"]]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
