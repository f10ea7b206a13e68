"""Stage 4 beside PEFT's merge_and_unload: peak memory and seconds of whole processes, on several shards.

Builds a Llama of --layers layers with random weights in bf16 (the default: 3.3 GB) and an adapter of rank 16
on all of its linear layers.  `imports` is a process that only imports what both import: what is above it is
the merge's own.

Run:    python perf/merge.py
"""
import argparse
import json
import sys
import tempfile
from pathlib import Path

from measure import ROOT, Run, alternate, machine, median, run

BUILD = """
import sys, torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM
torch.manual_seed(0)
config = LlamaConfig(vocab_size=32000, hidden_size=2048, intermediate_size=5632, dtype="bfloat16",
                     num_hidden_layers=int(sys.argv[3]), num_attention_heads=16, num_key_value_heads=16)
with torch.device("meta"):
    model = LlamaForCausalLM(config)
model = model.to(torch.bfloat16).to_empty(device="cpu")
for parameter in model.parameters():
    parameter.data.normal_(std=0.02)
model.save_pretrained(sys.argv[1], max_shard_size="700MB")
settings = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
model = get_peft_model(model, settings)
for name, parameter in model.named_parameters():
    if "lora_B" in name:
        parameter.data.normal_(std=0.02)
model.peft_config["default"].base_model_name_or_path = sys.argv[1]
model.save_pretrained(sys.argv[2])
"""
PEFT = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto")
merged = PeftModel.from_pretrained(model, sys.argv[2]).merge_and_unload()
merged.save_pretrained(sys.argv[3], max_shard_size="700MB")
"""
IMPORTS = """
import torch, peft, safetensors.torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM
"""


def write_tokenizer(folder: Path) -> None:
    """Write the smallest tokenizer that loads: merge_lora.py copies one."""
    vocabulary = {"<eos>": 0, "a": 1}
    tokenizer = {"version": "1.0", "added_tokens": [],
                 "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<eos>"}}
    empty = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor",
                           "decoder"))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | empty))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        run([sys.executable, "-c", BUILD, root / "base", root / "adapter", str(args.layers)])
        write_tokenizer(root / "adapter")
        shards = list((root / "base").glob("*.safetensors"))
        size = sum(file.stat().st_size for file in shards)

        def stage() -> Run:
            return run([sys.executable, ROOT / "merge_lora.py", "--hf_repository", root / "adapter",
                        "--output_dir", root / "merged", "--verify", "off"])

        def peft() -> Run:
            return run([sys.executable, "-c", PEFT, root / "base", root / "adapter", root / "peft"])

        results = alternate(args.runs, stage=stage, peft=peft,
                            imports=lambda: run([sys.executable, "-c", IMPORTS]))
        peak = {name: median([r.peak_bytes for r in runs]) for name, runs in results.items()}
        seconds = {name: median([r.seconds for r in runs]) for name, runs in results.items()}
        print(f"{machine()}; {size / 1e9:.2f} GB in {len(shards)} shards")
        print(f"merge_lora.py / merge_and_unload, peak memory: {peak['stage'] / 1e6:.0f} MB / "
              f"{peak['peft'] / 1e6:.0f} MB = {peak['stage'] / peak['peft']:.3f} (imports alone: "
              f"{peak['imports'] / 1e6:.0f} MB)")
        print(f"merge_lora.py / merge_and_unload, seconds: {seconds['stage']:.1f} / {seconds['peft']:.1f} = "
              f"{seconds['stage'] / seconds['peft']:.2f}")


if __name__ == "__main__":
    main()
