"""Stage 3 beside what people would use instead: labelled examples a second, same model and adapters.

    stage:     train.py on the pairs that the others get (--train_on pairs --end_of_text always)
    reference: the recipe that many tutorials have: Trainer, rows padded to 512 tokens, labels everywhere,
               batches of 4
    trl:       TRL's SFTTrainer on the same pairs of prompt and completion, loss on the completion; packed or
               not

All have the same precision and are measured in one run.  Seconds are those of the training loop: loading the
model is left out for all.  Each candidate is a process of its own, and a first, untimed step prepares its
kernels.  The candidate "compiled" is the stage with --torch_compile.  The last line says how far the stage is
from the limit: 4 FLOP a parameter and token (LoRA: forward, and backward through the activations) over the
rate of a matrix product of 2048 x 2048.

Run:    python perf/train.py --model_name_or_path MODEL --dataset DATASET
"""
import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import CLOCK, ROOT, machine, median, skip

COMMON = """
import json, sys, time, torch
from datasets import load_from_disk
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments
model_name, dataset, examples, precision, out = sys.argv[1:6]
examples = int(examples)
dtype = {"bf16": torch.bfloat16, "float32": torch.float32}[precision]
tokenizer = AutoTokenizer.from_pretrained(model_name)
tokenizer.pad_token = tokenizer.eos_token
rows = load_from_disk(dataset)["train"].shuffle(seed=0).select(range(examples))
rows = rows.select_columns(["prompt", "completion"])
model = AutoModelForCausalLM.from_pretrained(model_name, dtype=dtype)
# the default adapter of train.py
lora = LoraConfig(r=64, lora_alpha=128, target_modules="all-linear", task_type="CAUSAL_LM")
device = dict(use_cpu=not torch.cuda.is_available(), bf16=precision == "bf16", report_to="none",
              save_strategy="no", disable_tqdm=True)
""" + CLOCK
REFERENCE = COMMON + """
from transformers import DataCollatorForLanguageModeling
def encode(row):
    return tokenizer(row["prompt"] + row["completion"], truncation=True, max_length=512, padding="max_length")
encoded = rows.map(encode, remove_columns=["prompt", "completion"])
trainer = Trainer(model=get_peft_model(model, lora), train_dataset=encoded, callbacks=[clock],
                  data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
                  args=TrainingArguments(out, per_device_train_batch_size=4, learning_rate=1e-3, **device))
trainer.train()
print(json.dumps({"examples_per_second": 4 * clock.steps / (clock.ended - clock.begun),
                  "peak_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0}))
"""
TRL = COMMON + """
from trl import SFTConfig, SFTTrainer
packing = sys.argv[6] == "packed"
trainer = SFTTrainer(model=model, train_dataset=rows, processing_class=tokenizer, peft_config=lora,
                     callbacks=[clock],
                     args=SFTConfig(out, per_device_train_batch_size=4 if packing else 16, learning_rate=1e-3,
                                    max_length=1024, packing=packing, packing_strategy="wrapped",
                                    completion_only_loss=True, gradient_checkpointing=False, **device))
trainer.train()
share = clock.steps / (clock.steps + 1)
print(json.dumps({"examples_per_second": share * examples / (clock.ended - clock.begun),
                  "loss": f"loss_type {trainer.args.loss_type}"}))
"""
STAGE = """
import json, sys, time, torch
sys.path.insert(0, sys.argv[6])
import train
model_name, dataset, examples, precision, out = sys.argv[1:6]
begun, seconds = time.perf_counter(), []
from pipeline.training.trainer import CompletionTrainer
step = CompletionTrainer.training_step
def training_step(self, *args, **kwargs):
    result = step(self, *args, **kwargs)
    seconds.append(time.perf_counter())
    return result
CompletionTrainer.training_step = training_step
train.main(["--model_name_or_path", model_name, "--dataset", dataset, "--max_train_samples", examples,
            "--max_validation_samples", "1", "--eval_steps", "100000", "--output_dir", out + "/adapter",
            "--quantization", "none", "--precision", precision, "--train_on", "pairs", "--end_of_text",
            "always", "--examples_per_step", "16", *sys.argv[7:]])
summary = json.load(open(out + "/adapter/manifest.json"))["summary"]
print(json.dumps({"examples_per_second": 16 * (len(seconds) - 1) / (seconds[-1] - seconds[0]),
                  "preparation_seconds": seconds[0] - begun, **summary,
                  "peak_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0}))
"""
LIMIT = """
import sys, time, torch
from transformers import AutoConfig, AutoModelForCausalLM
dtype = {"bf16": torch.bfloat16, "float32": torch.float32}[sys.argv[2]]
device = "cuda" if torch.cuda.is_available() else "cpu"
a, b = (torch.randn(2048, 2048, dtype=dtype, device=device) for _ in range(2))
best = 0
for _ in range(8):
    begun = time.perf_counter()
    (a @ b).sum().item()
    best = max(best, 2 * 2048**3 / (time.perf_counter() - begun))
with torch.device("meta"):
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(sys.argv[1]))
print(best, sum(p.numel() for p in model.parameters()))
"""

OTHERS = {"reference": (REFERENCE, []), "trl, not packed": (TRL, ["plain"]), "trl, packed": (TRL, ["packed"]),
          "compiled": (STAGE, [ROOT, "--torch_compile"])}


def child(code: str, *arguments: object) -> str:
    """Run a candidate and return the last line that it prints; its own errors where it fails."""
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True,
                          check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout.strip().splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--dataset", required=True, help="folder that preprocess_data.py wrote")
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--reference_examples", type=int, default=16, help="it is slow: fewer")
    parser.add_argument("--precision", choices=("bf16", "float32"), default="bf16")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--against", nargs="*", choices=list(OTHERS), default=list(OTHERS),
                        help="(default: all)")
    args = parser.parse_args()
    if not Path(args.dataset).is_dir():
        skip(f"{args.dataset} is not there")
    rates: dict[str, list[float]] = {}
    tokens, preparation = [], {}
    for _ in range(args.runs):
        candidates = {"stage": (STAGE, [ROOT])} | {name: OTHERS[name] for name in args.against}
        for name, (code, more) in candidates.items():
            examples = args.reference_examples if name == "reference" else args.examples
            with tempfile.TemporaryDirectory() as folder:
                found = json.loads(child(code, args.model_name_or_path, args.dataset, examples,
                                         args.precision, folder, *more))
            rates.setdefault(name, []).append(found["examples_per_second"])
            if name == "stage":
                tokens.append(found["tokens_per_second"])
            if "preparation_seconds" in found:
                preparation[name] = found["preparation_seconds"]
            print(f"{name}: {found['examples_per_second']:.3f} examples a second", found.get("loss", ""),
                  file=sys.stderr, flush=True)
    middle = {name: median(found) for name, found in rates.items()}
    print(f"{machine()}; {args.precision}")
    for name in args.against:
        print(f"train.py / {name}, labelled examples a second: {middle['stage']:.3f} / {middle[name]:.3f} = "
              f"{middle['stage'] / middle[name]:.2f}")
    if "compiled" in args.against:
        print(f"up to the end of the first step: {preparation['stage']:.0f} s, compiled "
              f"{preparation['compiled']:.0f} s")
    rate, parameters = map(float, child(LIMIT, args.model_name_or_path, args.precision).split())
    limit = rate / 4 / parameters
    print(f"train.py: {median(tokens):.0f} tokens a second are {median(tokens) / limit:.0%} of the limit of "
          f"{limit:.0f} (matrix products at {rate / 1e9:.0f} GFLOP/s)")


if __name__ == "__main__":
    main()
