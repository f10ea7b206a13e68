"""The merged model behind a server that an editor talks to, as docs/use.md says."""
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_models
from evaluation_runs import written_alone

SECONDS = 300  # to wait for the server, on a machine that does other things


@pytest.fixture(scope="module")
def server(folders: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable]:
    """`transformers serve` with the merged model: a function that sends a JSON request to a path."""
    for package in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(package)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).parent / "transformers"), "serve", str(folders.merged), "--port",
               str(port), "--host", "127.0.0.1", "--device", "cpu", "--dtype", "float32"]
    log = tmp_path_factory.mktemp("server") / "log"
    with open(log, "w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | {
            "HF_HUB_OFFLINE": "1", "NO_PROXY": "127.0.0.1"})

    def send(path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=SECONDS) as answer:
            return json.load(answer)

    try:
        end = time.monotonic() + SECONDS
        while True:
            try:
                send("/health")
                break
            except (urllib.error.URLError, ConnectionError):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.2)
        yield send
    finally:
        process.terminate()
        process.wait(timeout=30)


def test_transformers_serve_writes_what_the_model_writes(server: Callable, folders: SimpleNamespace) -> None:
    """An editor that talks to the server gets a chat's answer, another model's, or none."""
    from transformers import AutoModelForCausalLM

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folders.merged), tiny_models.make_tokenizer()
    for prompt, _ in tiny_models.examples(3, seed=6):
        answer = server("/v1/completions", {"model": str(folders.merged), "prompt": prompt, "max_tokens": 16,
                                            "temperature": 0})
        ids = tokenizer(prompt)["input_ids"]
        expected = written_alone(model, ids, 16, eos_token_id=tokenizer.eos_token_id)
        assert answer["choices"][0]["text"] == tokenizer.decode(expected, skip_special_tokens=True)
        assert answer["usage"]["prompt_tokens"] == len(ids)
