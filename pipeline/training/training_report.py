"""What the user can look at: the plan of a run, completions before and after it, report.md."""
import argparse
import contextlib
import json
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from pipeline.data.encoded_examples import EncodedExamples
from pipeline.model.padding import IGNORED_LABEL, left_padded
from pipeline.model.tokenizers import decode_behind
from pipeline.run.errors import first_line
from pipeline.run.hashes import hash_files
from pipeline.run.manifests import write_manifest
from pipeline.run.markdown import fenced
from pipeline.run.outputs import MANIFEST, atomic_folder
from pipeline.run.stage import duration
from pipeline.training.batches import Plan, real_token_share, step_order, token_batches
from pipeline.training.curve import draw_curve
from pipeline.training.lora import evaluation_mode, frozen_experts
from pipeline.training.training_data import REPLAY, Data

SHOWN_COMPLETIONS, SHOWN_TOKENS = 3, 64  # in the report


def complete_samples(trainer: Any, tokenizer: Any, examples: EncodedExamples,
                     seed: int) -> list[dict[str, str]]:
    """Return {"prompt", "reference", "before", "after"} of a few examples.

    Before and after: what the base model writes, and what the adapted one does.  Examples without a prompt,
    behind which nothing can be written, are left out; a prompt as long as the model's context loses its
    start, so that there is room for new tokens.
    """
    with_prompt = [i for i in range(len(examples)) if examples.prompt_lengths[i]]
    chosen = sorted(random.Random(seed).sample(with_prompt, min(SHOWN_COMPLETIONS, len(with_prompt))))
    if not chosen:
        return []
    model = evaluation_mode(trainer.accelerator.unwrap_model(trainer.model))
    context = getattr(model.config, "max_position_embeddings", None) or sys.maxsize
    new_tokens = min(SHOWN_TOKENS, max(1, context // 2))
    rows = [examples[i]["input_ids"] for i in chosen]
    prompts = [row[:examples.prompt_lengths[i]] for i, row in zip(chosen, rows, strict=True)]
    references = [row[len(p):] for row, p in zip(rows, prompts, strict=True)]
    prompts = [p[-(context - new_tokens):] for p in prompts]
    inputs = left_padded(prompts, tokenizer.eos_token_id, trainer.args.device)
    del inputs["position_ids"]  # generate makes its own
    model.gradient_checkpointing_disable()  # it does without a cache

    def texts(rows: list[list[int]]) -> list[str]:
        return [decode_behind(tokenizer, prompt, row) for prompt, row in zip(prompts, rows, strict=True)]

    def completions() -> list[str]:
        # eager: with --torch_compile, each new length of the cache would be compiled
        with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
            written = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False, use_cache=True,
                                     pad_token_id=tokenizer.eos_token_id)
            return texts(written[:, inputs["input_ids"].shape[1]:].tolist())

    with model.disable_adapter():
        before = completions()
    asked = tokenizer.batch_decode(prompts, skip_special_tokens=True)
    columns = (asked, texts(references), before, completions())
    return [dict(zip(("prompt", "reference", "before", "after"), column, strict=True))
            for column in zip(*columns, strict=True)]


def report_text(summary: dict[str, Any], curve: list[dict[str, float]], samples: list[dict[str, str]]) -> str:
    """Return report.md: the loss by step, its picture, and completions before and after training."""
    lines = ["# Training", "", "| | |", "|---|---:|",
             *(f"| {key.replace('_', ' ')} | {value:,} |" for key, value in summary.items()), "",
             "![training and validation loss](training_curve.png)", "",
             "| step | examples | validation loss | behind one chunk | behind pieces | replay loss | "
             "loss of middles |", "|---:|---:|---:|---:|---:|---:|---:|"]
    for row in (row for row in curve if "validation_loss" in row):
        losses = (f"{row[name]:.4f}" if name in row else ""
                  for name in ("validation_loss", "one_chunk_loss", "repository_loss", "replay_loss",
                               "infilling_loss"))
        lines.append(f"| {row['step']} | {row['examples']} | {' | '.join(losses)} |")
    lines += ["", f"## Completions of the validation set, greedy, at most {SHOWN_TOKENS} tokens"]
    for sample in samples:
        for key, text in sample.items():
            lines += ["", f"**{key}**", "", fenced(text)]
        lines += ["---"]
    return "\n".join(lines) + "\n"


def show_dry_run(data: Data, tokenizer: Any, args: argparse.Namespace, tokens_per_batch: int) -> None:
    """Print one example with its labels marked, and the shapes of the first step's batches."""
    order = step_order(data.train.lengths, args.examples_per_step, args.seed, 0)[:args.examples_per_step]
    shown = [order[0]]
    if data.infilling:  # the first with a middle too
        marks = data.train.marks
        shown += [i for i in order if marks & set(data.train[i]["input_ids"]) and i != order[0]][:1]
    for example in shown:
        row, prompt = data.train[example], int(data.train.prompt_lengths[example])
        labels = len(row["labels"]) - row["labels"].count(IGNORED_LABEL)
        text, unlabelled = tokenizer.decode(row["input_ids"]), tokenizer.decode(row["input_ids"][:prompt])
        print(f"one example: {prompt} tokens without a label\n{unlabelled}\n"
              f"--- and {labels} tokens with one ---\n{text[len(unlabelled):]}")
    batches = token_batches([data.train[i] for i in order], tokens_per_batch)
    shapes = [f"({len(b)}, {len(b[0]['input_ids'])})" for b in batches]
    print(f"the first step's batches, (rows, tokens): {', '.join(shapes)}\n"
          "dry run: nothing was trained or written")


def describe(args: argparse.Namespace, model: Any, data: Data, trainer: Any, steps: int, device: str,
             precision: str, plan: Plan, asked_quantization: str) -> None:
    """Print the device and how it is used, about how long it will take, and what is trained on how much."""
    if not trainer.is_world_process_zero():
        return
    processes = trainer.args.world_size
    share = real_token_share(data.train.lengths, args.examples_per_step, processes, trainer.tokens_per_batch,
                             args.seed)
    tokens = int(data.train.lengths.sum() * steps * args.examples_per_step / len(data.train))
    validations = 1 + steps // trainer.args.eval_steps
    # a validation has no backward pass, which is about two thirds of the work
    held_out = sum(examples.lengths.sum() for examples in (data.validation, *data.also.values()))
    validated = validations * held_out / 3
    seconds = plan.seconds_per_token * (tokens / share + validated) / processes
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    experts = frozen_experts(model)
    frozen = f" ({experts:,} parameters of experts stay as they are)" if experts else ""
    base = "NF4" if args.quantization == "nf4" else precision
    if asked_quantization == "auto":
        base += " (16 bits do not fit)" if args.quantization == "nf4" else " (which fits)"
    what = "examples"
    if data.train_on == "files":
        what = f"sequences of whole files, of at most {args.sequence_tokens} tokens"
    if data.infilling:
        written = data.infilling.format
        what += (f" ({data.infilling.kinds.total():,} of them with a middle, {written.order} with "
                 f"{' '.join(written.tokens)})")
    if data.with_pieces:
        what += f" ({data.with_pieces:,} of them behind pieces of other files)"
    if data.methods:
        what += f", {data.methods:,} of them methods"
    if processes > 1:
        device = f"{processes} times {device}"
    print(f"device: {device}, {precision}, base model in {base}; at most {trainer.tokens_per_batch:,} tokens "
          f"at once, {plan.bytes_per_token / 1e6:.2f} MB each, with {plan.free / 1e9:.1f} GB free; about "
          f"{duration(seconds)}\n"
          f"{trainable:,} trainable parameters{frozen}; {len(data.train):,} {what}, {tokens:,} tokens in "
          f"{steps:,} steps of {args.examples_per_step} example{'s' * (args.examples_per_step > 1)}; "
          f"{share:.1%} of what is computed are real tokens; {len(data.validation):,} validation examples",
          flush=True)


def count(model: Any, data: Data) -> dict[str, int]:
    """Return the numbers of examples and of trainable parameters, for the manifest."""
    middles = data.infilling.kinds if data.infilling else {}
    return {"train_examples": len(data.train), "validation_examples": len(data.validation),
            "method_examples": data.methods,
            "replay_validation_examples": len(data.also.get(REPLAY, ())),
            "train_examples_behind_pieces": data.with_pieces,
            "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            **{f"middles_{kind}": number for kind, number in sorted(middles.items())}}


def write_adapter(args: argparse.Namespace, model: Any, tokenizer: Any, started: float,
                  details: dict[str, Any]) -> None:
    """Write adapter, tokenizer and manifest as one folder: what the run was for, before anything else."""
    with atomic_folder(args.output_dir) as folder:
        # no card of PEFT's own: it would name the base model by the path on this machine
        model.save_pretrained(str(folder), safe_serialization=True)
        (folder / "README.md").unlink(missing_ok=True)
        tokenizer.save_pretrained(str(folder))
        write_manifest(folder / MANIFEST, args, hash_files(folder), started, **details)


@contextlib.contextmanager
def adapter_stays(what: str) -> Iterator[None]:
    """Turn what fails within the block, which can cost no adapter, into one line that names `what` failed."""
    try:
        yield
    except Exception as error:
        print(f"WARNING: {what} failed ({type(error).__name__}: {first_line(error)}); the adapter is whole "
              "without it", file=sys.stderr)


def add_report(args: argparse.Namespace, trainer: Any, tokenizer: Any, examples: EncodedExamples,
               curve: list[dict[str, float]], started: float, details: dict[str, Any]) -> None:
    """Put curve and report beside the adapter, which is written: each if it can be.

    The folder is written again as a whole, with a manifest of what is there then: killed at any moment, the
    adapter is there with or without them, and its manifest names no other files than it has.
    """
    samples: list[dict[str, str]] = []
    with adapter_stays("completing a few prompts for the report"):
        samples = complete_samples(trainer, tokenizer, examples, args.seed)
    lines = "".join(json.dumps(row) + "\n" for row in curve)
    parts: dict[str, Callable[[Path], Any]] = {
        "training_curve.jsonl": lambda file: file.write_text(lines, encoding="utf-8"),
        "training_curve.png": lambda file: draw_curve(curve, file),
        "report.md": lambda file: file.write_text(report_text(details["summary"], curve, samples),
                                                  encoding="utf-8")}
    with adapter_stays(f"writing the report of {args.output_dir}"), atomic_folder(args.output_dir) as folder:
        for name in hash_files(args.output_dir):
            shutil.copyfile(args.output_dir / name, folder / name)
        for name, write in parts.items():
            with adapter_stays(f"writing {name}"):
                write(folder / name)
                continue
            (folder / name).unlink(missing_ok=True)
        write_manifest(folder / MANIFEST, args, hash_files(folder), started, **details)


def show_result(args: argparse.Namespace, summary: dict[str, Any], started: float) -> None:
    """Print what was learned, how fast, and where it lies."""
    print(f"validation loss {summary['validation_loss_before']:.4f} before, "
          f"{summary['validation_loss_after']:.4f} after (step {summary['best_step']}, the best); "
          f"{summary['real_token_share']:.1%} of the computed tokens were real; "
          f"{summary['tokens_per_second']:,.0f} tokens a second")
    if summary["validation_loss_after"] >= summary["validation_loss_before"]:
        print("WARNING: training did not lower the validation loss; lower --learning_rate, or train on more "
              "examples", file=sys.stderr)
    told = (args.output_dir / "report.md").is_file()
    shown = " (report.md shows completions before and after)" if told else ""
    print(f"wrote {args.output_dir}{shown} in {duration(time.time() - started)}")
