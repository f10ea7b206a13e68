"""Stage 3 of 5: fine-tune a causal language model on (prompt, completion) examples with QLoRA.

Reads   data/kotlin_prepared_dataset/   files: {"text": str}; pairs: {"prompt": str, "completion": str}
        --replay_dataset                optional JSONL of prompt, completion and, where something ends behind
                                        it, "ends": true; code that the model must not forget
Writes  models/adapter/                 the LoRA adapter and its tokenizer, report.md, training_curve.jsonl
                                        and .png, manifest.json
        models/adapter.checkpoints/     while it runs; removed when it has ended

The base model is quantized to 4 bits (NF4) and frozen; LoRA adapters on all of its linear layers are trained
in float32, with the computation in bf16.  What is learned from are whole files, in sequences of
--sequence_tokens: every token is a label once, and the end of text only where a file ends.  --fim_rate writes
a share of them as prefix, suffix and middle (docs/infilling.md), the end of text behind the middle.
--repository_tokens lets a share begin with pieces of other files, found by BM25, never in the file's
near-copies, and kept beside the data set in DATASET.pieces.json (docs/repository.md).  A data set without
files, or --train_on pairs, gives pairs of prompt and completion, whose labels are the completion's.
Validation is on pairs of held-out files, behind --sequence_tokens of their file and behind one chunk of it;
what is saved is the adapter of the validation with the lowest loss behind the longer context.  One optimizer
step holds --examples_per_step sequences or pairs, whatever the device; they pass through the model in batches
of at most --tokens_per_batch tokens, padded to their own longest row.

Memory: the model, activations in proportion to --tokens_per_batch (auto: as many as the free memory
takes), and 4 bytes a token of the sampled examples (100,000 sequences of 512: 200 MB).  Time: linear in the
tokens.

Run:    python train.py
        torchrun --nproc_per_node 4 train.py      # on four GPUs: the same steps, each shared out
Quick:  python train.py --model_name_or_path SMALL_MODEL --max_train_samples 200 --quantization none
"""
import argparse
import contextlib
import re
import shutil
import time
from pathlib import Path

from pipeline.run.outputs import check_replaceable, output_lock
from pipeline.run.stage import fraction, non_negative_int, positive_int, positive_number, run_stage, share

# In a repository that holds the merge of an earlier adapter: what must not lie beside a new one.
MERGED_MODEL = re.compile(r"model.*\.safetensors(\.index\.json)?|(generation_)?config\.json")
WARMUP_RATIO = 0.03  # share of the steps in which the learning rate rises
DEFAULT_REPLAY_FRACTION = 0.1  # of the training examples, where there is a --replay_dataset


def train(args: argparse.Namespace) -> None:
    """Train the adapter and write it to --output_dir; publish it to --hf_repository if there is one."""
    started = time.time()
    # What is heavy waits until the arguments are known to be good.
    import transformers

    from pipeline.hub.client import check_hub_write, find_manifest
    from pipeline.model import device as hardware
    from pipeline.model.mergeable import check_base
    from pipeline.model.tokenizers import load_tokenizer
    from pipeline.training import batches, checkpoints, curve, training_report
    from pipeline.training.callback import RunCallback
    from pipeline.training.lora import make_model
    from pipeline.training.trainer import make_trainer, training_arguments
    from pipeline.training.training_data import encode_splits

    check_replaceable(args.output_dir, "adapter_config.json")
    if args.hf_repository:
        check_hub_write(args.hf_repository)
    check_base(args.model_name_or_path, args.model_revision, args.model_name_or_path, "--model_name_or_path")
    tokenizer = load_tokenizer(args.model_name_or_path, args.model_revision)
    context = hardware.context_length(args.model_name_or_path, args.model_revision)
    data = encode_splits(args, tokenizer, DEFAULT_REPLAY_FRACTION, context)
    dataset_manifest = find_manifest(args.dataset, "dataset")

    hardware.quiet_libraries()
    transformers.set_seed(args.seed)
    hardware.take_device("train.py", args.deterministic)
    precision, device = hardware.choose_precision(args.precision), hardware.device_name()
    steps = batches.plan_steps(args, len(data.train))
    folder = args.output_dir.with_name(f"{args.output_dir.name}.checkpoints")
    settings = training_arguments(args, folder, precision, steps, WARMUP_RATIO)
    batches.tell_idle(args.examples_per_step, settings.world_size)
    first_process = settings.process_index == 0
    asked = args.quantization
    args.quantization = batches.choose_quantization(args, precision, settings.world_size)
    model = make_model(args, precision, tokenizer, data.highest_token(), data.trained_tokens())
    data.identities["base_model_hash"] = hardware.model_hash(args.model_name_or_path, args.model_revision)

    with output_lock(args.output_dir) if first_process else contextlib.nullcontext():
        shared_settings = checkpoints.resume_settings(args, data.identities, device)
        resume_from = checkpoints.choose_start(folder, args, shared_settings, settings.world_size)
        settings.eval_on_start = resume_from is None  # a resumed run has its first validation behind it
        trainer = make_trainer(args, settings, model, data, tokenizer.eos_token_id)
        plan = batches.plan_batches(trainer, data.train, args, resume_from)
        training_report.describe(args, model, data, trainer, steps, device, precision, plan, asked)
        if args.dry_run:
            training_report.show_dry_run(data, tokenizer, args, trainer.tokens_per_batch)
            with contextlib.suppress(OSError):
                folder.rmdir()  # the Trainer made it; one that holds checkpoints stays
            return
        if resume_from:
            trainer.load_best(resume_from / checkpoints.BEST_ADAPTER)
        callback = RunCallback(trainer, shared_settings, args.early_stopping_patience)
        trainer.add_callback(callback)
        begun = time.time()
        trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
        train_seconds = time.time() - begun
        checkpoints.stop_if_signalled(callback.signal, folder)
        summary, points = curve.finish(trainer, args, train_seconds)
        if first_process:
            details = dict(
                **data.identities, dataset_manifest=dataset_manifest, quantization=args.quantization,
                precision=precision, device=device, tokens_per_batch=trainer.tokens_per_batch,
                processes=settings.world_size, summary=summary, counts=training_report.count(model, data))
            training_report.write_adapter(args, model, tokenizer, started, details)
            training_report.add_report(args, trainer, tokenizer, data.validation, points, started, details)
            shutil.rmtree(folder, ignore_errors=True)
            training_report.show_result(args, summary, started)
            publish(args)


def publish(args: argparse.Namespace) -> None:
    """Push the adapter to --hf_repository, if there is one."""
    from pipeline.hub.client import push_folder  # as in `train`

    if args.hf_repository:
        commit = push_folder(args.output_dir, args.hf_repository, "Add the LoRA adapter", delete=MERGED_MODEL,
                             public=args.public, allow_secrets=args.allow_secrets)
        print(f"published {args.hf_repository} (commit {commit})")


def tokens_or_auto(text: str) -> int | str:
    """argparse type: a whole number of at least 1, or auto."""
    return text if text == "auto" else positive_int(text)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script's command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    files = parser.add_argument_group("what is read and written")
    files.add_argument("--model_name_or_path", default="microsoft/phi-1_5",
                       help="base model (default: %(default)s)")
    files.add_argument("--model_revision", help="branch, tag or commit of a hub model (default: main)")
    files.add_argument("--dataset", default="data/kotlin_prepared_dataset",
                       help="folder that preprocess_data.py wrote, or a hub data set (default: %(default)s)")
    files.add_argument("--replay_dataset", type=Path,
                       help="JSON lines of prompt and completion in a language that the model knows and must "
                            "not forget (default: none)")
    files.add_argument("--output_dir", type=Path, default=Path("models/adapter"),
                       help="the adapter (default: %(default)s)")
    files.add_argument("--hf_repository",
                       help="publish the adapter to this hub repository (default: stay local)")
    files.add_argument("--public", action="store_true",
                       help="a --hf_repository that is missing is made public (default: private)")
    files.add_argument("--allow_secrets", action="store_true",
                       help="publish although a text holds private keys or tokens (default: refuse)")
    files.add_argument("--resume", action="store_true",
                       help="go on from the newest whole checkpoint of an interrupted run")
    files.add_argument("--dry_run", action="store_true",
                       help="build everything, show an example and the first batches, and stop")
    files.add_argument("--overwrite", action="store_true",
                       help="start anew although an interrupted run could be resumed")
    learn = parser.add_argument_group("what is learned")
    learn.add_argument("--train_on", choices=("files", "pairs"),
                       help="whole files, every token a label, or pairs of prompt and completion, the "
                            "completion alone (default: files, where the data set has them)")
    learn.add_argument("--sequence_tokens", type=positive_int, default=512,
                       help="files are cut into sequences of at most so many tokens, each but a file's first "
                            "with some of the one before it as context (default: %(default)s)")
    learn.add_argument("--max_file_tokens", type=non_negative_int, default=20_000,
                       help="of one file so many tokens are learned at most, in sequences drawn with the "
                            "seed; 0: all (default: %(default)s)")
    learn.add_argument("--end_of_text", choices=("file_ends", "always"), default="file_ends",
                       help="where the end-of-text token is learned: where a file ends, or, of pairs, behind "
                            "every completion (default: %(default)s)")
    learn.add_argument("--fim_rate", type=fraction, default=0.0,
                       help="share of the sequences that are written as prefix, suffix and middle, so that "
                            "the model learns to fill in between what stands before and behind the cursor "
                            "(default: %(default)s)")
    learn.add_argument("--fim_order", choices=("psm", "spm"),
                       help="prefix, suffix, middle, or suffix, prefix, middle (default: as the model's "
                            "family publishes it; psm with --fim_tokens)")
    learn.add_argument("--fim_tokens", nargs=3, metavar=("PREFIX", "SUFFIX", "MIDDLE"),
                       help="entries of the vocabulary that mark the parts; where the model does not know "
                            "them, their embeddings are trained (default: its family's tokens)")
    learn.add_argument("--repository_tokens", type=non_negative_int, default=0,
                       help="a share of the sequences begins with at most so many tokens of pieces of the "
                            "repository's other files, without labels; they are looked for once, before "
                            "training; 0: none (default: %(default)s)")
    learn.add_argument("--repository_fraction", type=share, default=0.5,
                       help="that share (default: %(default)s)")
    learn.add_argument("--method_fraction", type=fraction, default=0.0,
                       help="share of the training examples, but for the replayed, that are methods, one in "
                            "five another top-level declaration, behind their file up to the signature: "
                            "the body, and the end of text behind it, are the labels (default: %(default)s)")
    learn.add_argument("--max_train_samples", type=non_negative_int, default=100_000,
                       help="sequences or pairs drawn from the train split; 0: all (default: %(default)s)")
    learn.add_argument("--max_validation_samples", type=non_negative_int, default=500,
                       help="pairs drawn from the validation split; 0: all (default: %(default)s)")
    learn.add_argument("--quantization", choices=("nf4", "none", "auto"), default="nf4",
                       help="of the base model; auto: nf4 only where its weights in --precision take more "
                            "than half of the device's free memory (default: %(default)s)")
    learn.add_argument("--precision", choices=("auto", "bf16", "fp16", "float32"), default="auto",
                       help="of the computation; auto: bf16 where the hardware has it, else fp16 on a GPU, "
                            "float32 on a CPU (default: %(default)s)")
    learn.add_argument("--lora_r", type=positive_int, default=64,
                       help="rank of the adapters (default: %(default)s)")
    learn.add_argument("--lora_alpha", type=non_negative_int, default=0,
                       help="adapters are scaled by lora_alpha / lora_r; 0: twice --lora_r (default: "
                            "%(default)s)")
    learn.add_argument("--lora_dropout", type=fraction, default=0.0, help="(default: %(default)s)")
    learn.add_argument("--lora_target_modules", nargs="+", default=["all-linear"],
                       help="names of the layers with adapters; all-linear: every linear layer but the head "
                            "(default: %(default)s)")
    learn.add_argument("--use_rslora", action="store_true",
                       help="scale adapters by lora_alpha / sqrt(lora_r)")
    learn.add_argument("--learning_rate", type=positive_number, default=1e-3,
                       help="its highest value (default: %(default)s)")
    learn.add_argument("--lr_scheduler_type", choices=("cosine", "linear", "constant_with_warmup"),
                       default="cosine",
                       help=f"after a warm-up over {WARMUP_RATIO:.0%}% of the steps (default: %(default)s)")
    learn.add_argument("--examples_per_step", type=non_negative_int, default=0,
                       help="examples in one optimizer step, over all processes; 0: as many as leave 300 "
                            "steps, 16 at most (default: %(default)s)")
    learn.add_argument("--num_train_epochs", type=positive_number, default=1.0, help="(default: %(default)s)")
    learn.add_argument("--max_steps", type=non_negative_int, default=0,
                       help="optimizer steps, in place of --num_train_epochs; 0: by epochs (default: "
                            "%(default)s)")
    learn.add_argument("--replay_fraction", type=fraction, default=0.0,
                       help="share of the training examples that come from --replay_dataset, in addition to "
                            f"the others; 0: {DEFAULT_REPLAY_FRACTION} if there is one "
                            "(default: %(default)s)")
    learn.add_argument("--early_stopping_patience", type=non_negative_int, default=0,
                       help="end after so many validations without a lower loss; 0: never (default: "
                            "%(default)s)")
    learn.add_argument("--max_length", type=positive_int, default=1024,
                       help="longest pair, in tokens; longer ones lose the start of the prompt (default: "
                            "%(default)s)")
    learn.add_argument("--seed", type=int, default=0,
                       help="of the sample, the order and the adapters (default: %(default)s)")
    work = parser.add_argument_group("how it is computed and shown")
    work.add_argument("--tokens_per_batch", type=tokens_or_auto, default="auto",
                      help="padded tokens that pass through the model at once; auto: as many as the free "
                           "memory takes; halved when memory runs out (default: %(default)s)")
    work.add_argument("--gradient_checkpointing", action="store_true",
                      help="compute activations twice to save memory; turned on where one example does not "
                           "fit without it")
    work.add_argument("--deterministic", action="store_true",
                      help="on a GPU, take only kernels that give the same bits each time, which are slower, "
                           "so that a run that is repeated or resumed ends with the same adapter; a CPU has "
                           "no others (default: the fastest kernels)")
    work.add_argument("--torch_compile", action="store_true",
                      help="compile the model's blocks first: a minute or more, which pays in long runs")
    work.add_argument("--eval_steps", type=non_negative_int, default=0,
                      help="steps between two validations; 0: a fifth of the run (default: %(default)s)")
    work.add_argument("--save_steps", type=non_negative_int, default=0,
                      help="steps between two checkpoints; 0: as --eval_steps (default: %(default)s)")
    work.add_argument("--logging_steps", type=positive_int, default=10, help="(default: %(default)s)")
    work.add_argument("--report_to", nargs="+", default=["none"],
                      help="the Trainer's trackers, e.g. tensorboard (default: none)")
    return parser


def main(argv: list[str] | None = None) -> None:
    run_stage(train, build_parser().parse_args(argv))


if __name__ == "__main__":
    main()
