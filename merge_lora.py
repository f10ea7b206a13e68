"""Stage 4 of 5: merge a LoRA adapter into its base model, tensor by tensor, and publish the result.

Reads   --hf_repository     the adapter: a folder that train.py wrote, or a hub repository
        its base model      a folder or a hub model, safetensors only
Writes  models/merged/      the merged model with its tokenizer, in the base model's shards, and manifest.json
        model.gguf in it    with --gguf: the same model for llama.cpp

No GPU is needed.  Weights are read from the base model's files in blocks of rows; the product of the matching
LoRA matrices is added in float32, rounded once, and written straight to the output.  What is merged is
W + scale * B @ A with scale = lora_alpha / r, or lora_alpha / sqrt(r) with rsLoRA (Hu et al. 2021;
Kalajdzievski 2023).  For a hub repository the merged model goes to the same repository in one commit that
also removes the adapter's files there, because a later load would apply the adapter a second time; the
adapter lives on in the branch `adapter`.

Memory: a few blocks of 64 MB and the adapter, whatever the model's size; with --base nf4 the largest
quantized matrix in float32.  Time: that of reading and writing the weights once.

Run:    python merge_lora.py --hf_repository models/adapter
"""
import argparse
import re
import shutil
import time
from pathlib import Path
from typing import Any

from pipeline.run.errors import PipelineError, looks_like_path
from pipeline.run.hashes import hash_files, sha256_file
from pipeline.run.manifests import MODEL_FILES, check_manifest, read_manifest, write_manifest
from pipeline.run.outputs import atomic_folder, check_replaceable, output_lock
from pipeline.run.stage import duration, run_stage

ADAPTER_BRANCH = "adapter"
# In a repository of an adapter: what a merged model must not lie beside.
STALE_IN_REPOSITORY = re.compile(r"adapter_.*|(.*/)?training_args\.bin|(last-checkpoint|checkpoint-\d+)/.*|"
                                 r"training_curve\..*|optimizer\.pt|scheduler\.pt|rng_state.*\.pth")


def merge(args: argparse.Namespace) -> None:
    """Merge the adapter of --hf_repository into its base model; for a hub name, publish the result there."""
    started = time.time()
    # What is heavy waits until the arguments are known to be good.
    from pipeline.hub.client import check_hub_write, push_folder
    from pipeline.merging import adapter, base, gguf_file, lora_merge
    from pipeline.merging.card import model_card
    from pipeline.merging.verification import enough_memory_to_verify, verify
    from pipeline.model import mergeable
    from pipeline.model.device import quiet_libraries

    on_hub = not Path(args.hf_repository).is_dir() and not looks_like_path(args.hf_repository)
    check_output(args, mergeable.ADAPTER_CONFIG)
    if on_hub:
        check_hub_write(args.hf_repository)
        if adapter.is_merged_repository(args.hf_repository):
            print(f"{args.hf_repository} is merged already; nothing to do (the adapter is in its branch "
                  f"{ADAPTER_BRANCH})")
            return
    adapter_folder = adapter.fetch_adapter(args.hf_repository, None)
    if not on_hub:
        check_manifest(adapter_folder, MODEL_FILES)
    config, trained = adapter.read_adapter_config(adapter_folder), read_manifest(adapter_folder)
    base_name, base_revision = base.choose_base(args, config, adapter_folder)
    base_folder = base.fetch_base(base_name, base_revision)
    mergeable.check_base(str(base_folder), None, base_name, "--base_model")
    if not args.base_model:
        base.check_trained_base(trained, base_name, base_folder)
    quiet_libraries()
    if args.gguf:
        gguf_file.check_gguf(base_folder, base_name)
    pairs, rows = (read(adapter_folder, config) for read in (adapter.read_adapter, adapter.read_token_rows))
    shards = mergeable.base_tensors(base_folder, base_name)
    nf4 = args.base == "nf4"
    targets = lora_merge.locate_targets(pairs, [t for shard in shards for t in shard], base_folder, nf4, rows)
    check_space(args, sum(t.size for shard in shards for t in shard))
    print(f"base model {base_name} ({'its NF4 values' if nf4 else 'its checkpoint'}), "
          f"{len(pairs)} matrices{f' and {len(rows.tokens)} embeddings' if rows else ''} to merge")
    with output_lock(args.output_dir), atomic_folder(args.output_dir) as folder:
        merged = lora_merge.write_model(base_folder, adapter_folder, folder, targets, shards, args.dtype, nf4)
        name = args.hf_repository if on_hub else args.output_dir.name
        card = model_card(name, base_name, args.base, config, trained)
        (folder / "README.md").write_text(card, encoding="utf-8")
        proof = None
        if args.verify == "on" or (args.verify == "auto" and enough_memory_to_verify(shards)):
            proof = verify(base_folder, adapter_folder, folder, targets, shards, nf4)
        show_proof(proof, args)
        if args.gguf:
            gguf_file.write_gguf(folder)
        inputs = {adapter.ADAPTER_WEIGHTS: sha256_file(adapter_folder / adapter.ADAPTER_WEIGHTS)}
        write_manifest(folder / "manifest.json", args, hash_files(folder), started, base_model=base_name,
                       inputs=inputs, merged_into=args.base, verification=proof, merged_tensors=merged,
                       adapter_manifest=trained, counts={"merged_matrices": len(pairs)})
    print(f"wrote {args.output_dir} in {duration(time.time() - started)}")
    if on_hub:
        commit = push_folder(args.output_dir, args.hf_repository, "Merge the adapter into the base model",
                             delete=STALE_IN_REPOSITORY, keep_branch=ADAPTER_BRANCH,
                             allow_secrets=args.allow_secrets)
        print(f"published {args.hf_repository} (commit {commit}); the adapter is in its branch "
              f"{ADAPTER_BRANCH}")


def check_output(args: argparse.Namespace, adapter_config: str) -> None:
    """Raise PipelineError where --output_dir holds an adapter, or something that is not of this script."""
    same = Path(args.hf_repository).resolve() == args.output_dir.resolve()
    if same or (args.output_dir / adapter_config).is_file():
        raise PipelineError(f"--output_dir {args.output_dir}: holds an adapter; merged weights beside it "
                            "would get the adapter applied a second time when they are loaded; choose "
                            "another folder")
    check_replaceable(args.output_dir, "config.json")


def check_space(args: argparse.Namespace, base_bytes: int) -> None:
    """Raise PipelineError where the disk has no room for a model of `base_bytes` as it will be written."""
    needed = base_bytes * (2 if args.dtype == "float32" else 1) * (2 if args.gguf else 1)
    args.output_dir.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(args.output_dir.parent).free < needed:
        raise PipelineError(f"--output_dir {args.output_dir}: {needed / 1e9:.1f} GB are needed and not free; "
                            "free some space")


def show_proof(proof: dict[str, Any] | None, args: argparse.Namespace) -> None:
    """Print what the verification found, or why there was none."""
    if proof:
        print("verified against base + adapter: largest difference of a logit "
              f"{proof['max_logit_difference']:.3g}, same top token at {proof['top_token_agreement']:.1%} of "
              f"the positions, KL {proof['kl_nats']:.2g} nats")
    else:
        print("not verified" + (": too little memory for it (--verify on tries all the same)"
                                if args.verify == "auto" else ""))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script's command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hf_repository", required=True,
                        help="the adapter: a folder that train.py wrote, or a hub repository, to which the "
                             "merged model is published")
    parser.add_argument("--allow_secrets", action="store_true",
                        help="publish although a text holds private keys or tokens (default: refuse)")
    parser.add_argument("--base_model",
                        help="base model to merge into (default: the one that the adapter names)")
    parser.add_argument("--base", choices=("checkpoint", "nf4"), default="checkpoint",
                        help="merge into the checkpoint's weights, or into what NF4 makes of them (default: "
                             "%(default)s)")
    parser.add_argument("--dtype", choices=("base", "bfloat16", "float16", "float32"), default="base",
                        help="type of the merged weights; base: that of the base model's files (default: "
                             "%(default)s)")
    parser.add_argument("--verify", choices=("auto", "on", "off"), default="auto",
                        help="compare the result with base + adapter before it is kept; auto: if memory "
                             "allows (default: %(default)s)")
    parser.add_argument("--gguf", action="store_true",
                        help="also write model.gguf, for llama.cpp and Ollama: models of the Llama layout "
                             "with a byte-level BPE alone")
    parser.add_argument("--output_dir", type=Path, default=Path("models/merged"),
                        help="the merged model (default: %(default)s)")
    return parser


def main(argv: list[str] | None = None) -> None:
    run_stage(merge, build_parser().parse_args(argv))


if __name__ == "__main__":
    main()
