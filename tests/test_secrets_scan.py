"""pipeline/hub/secrets_scan.py: which texts hold secrets, and which only look so.

The tokens are put together here: written out, they would be found in this file too.
"""
import base64
import json
from collections import Counter
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.hub import secrets_scan
from pipeline.hub.secrets_scan import find_secrets, refuse_secrets, secrets_in_files
from pipeline.run.errors import PipelineError

MIXED, HEX = "aB3dE6gH9jK2mN5pQ8sT1vW4yZ7" * 12, "0a1b2c3d4e5f6978" * 12
UPPER = MIXED.upper()
HEAD = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').decode().rstrip("=")
BODY = base64.urlsafe_b64encode(b'{"sub":"1234567890","name":"A"}').decode().rstrip("=")
JWT = f"{HEAD}.{BODY}.{MIXED[:43]}"
GITHUB = "ghp_" + MIXED[:36]
KEY_HEAD = "-----BEGIN RSA " + "PRIVATE KEY-----"
TOKENS = [
    ("AWS key", "AKIA" + UPPER[:16]), ("GitHub token", GITHUB),
    ("GitHub token", f"github_pat_{MIXED[:22]}_{MIXED[:59]}"), ("GitLab token", "glpat-" + MIXED[:20]),
    ("Slack token", f"xoxb-{'12345678901-' * 2}{MIXED[:24]}"),
    ("Slack webhook", f"https://hooks.slack.com/services/T{UPPER[:8]}/B{UPPER[:8]}/{MIXED[:24]}"),
    ("Stripe key", "sk_live_" + MIXED[:24]), ("Google key", "AIza" + MIXED[:35]),
    ("Hugging Face token", "hf_" + MIXED[:34]), ("OpenAI key", f"sk-proj-{MIXED[:20]}T3BlbkFJ{MIXED[:20]}"),
    ("Anthropic key", "sk-ant-" + "api03-" + MIXED[:95]), ("npm token", "npm_" + MIXED[:36]),
    ("PyPI token", "pypi-AgEIcHlwaS5vcmc" + MIXED[:80]), ("SendGrid key", f"SG.{MIXED[:22]}.{MIXED[:43]}"),
    ("Twilio key", "SK" + HEX[:32]), ("Telegram token", "123456789:AA" + MIXED[:33]),
    ("Azure storage key", f"AccountKey={MIXED[:86]}=="), ("Mailchimp key", HEX[:32] + "-us12"),
    ("Mailgun key", "key-" + HEX[:32]), ("Shopify token", "shpat_" + HEX[:32]),
    ("DigitalOcean token", "dop_v1_" + HEX[:64]), ("Databricks token", "dapi" + HEX[:32]),
    ("Docker token", "dckr_pat_" + MIXED[:27]), ("Atlassian token", "ATATT3" + MIXED[:180]),
    ("JetBrains token", f"perm:{MIXED[:8]}.{MIXED[:8]}.{MIXED[:32]}"), ("Vault token", "hvs." + MIXED[:95]),
    ("Square token", "sq0atp-" + MIXED[:22]), ("JWT", JWT),
    ("Discord token", base64.b64encode(b"123456789012345678").decode() + f".{MIXED[:6]}.{MIXED[:27]}"),
    ("private key", f"{KEY_HEAD}\n{MIXED[:64]}\n"),
    ("private key", f'"{KEY_HEAD}\\n" +\n        "{MIXED[:64]}\\n"'),
    ("private key", f"{KEY_HEAD}\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES,{HEX[:32]}\n\n{MIXED[:64]}\n"),
    ("private key", "AGE-SECRET-KEY-" + "1" + UPPER[:58])]


@pytest.mark.parametrize(("kind", "token"), TOKENS)
def test_what_is_a_secret(kind: str, token: str) -> None:
    """A key that opens something is published with the code."""
    for text in (token, f'val key = "{token}"\n', f"a={token};"):
        assert find_secrets(text) == Counter({kind: 1}), text


@pytest.mark.parametrize("text", [
    "", "ghp_", "ghp_" + "x" * 36, "AKIA" + "IOSFODNN7" + "EXAMPLE", "sk_live_" + "0" * 24,
    f"{KEY_HEAD}\n...\n", f'if (line == "{KEY_HEAD}") read()\n' + "fun parse(a: Int) = a\n" * 40,
    f"{HEAD}x.{BODY}.{MIXED[:43]}",  # its head is no JSON
    "return this@Label.x", "MutableListOfEverything23.method.andAnotherMethodOfLength27",
    "xoxo", "git commit 0a1b2c3d4e5f60718293a4b5c6d7e8f901234567", f"aghp_{MIXED[:36]}", "SKIP_" + HEX[:32],
    "org.example.SG.aaaaaaaaaaaaaaaaaaaaaa.b"])
def test_what_only_looks_like_one(text: str) -> None:
    """False alarms, until everybody publishes with --allow_secrets."""
    assert not find_secrets(text)


@given(st.text())
def test_any_text_can_be_searched(text: str) -> None:
    """One odd file ends the run."""
    assert not find_secrets(text)


def test_every_kind_of_file_is_searched(tmp_path: Path) -> None:
    """The code is searched, and the same token in a Parquet file or after an escape is published."""
    rows = {"text": ["a", f"b {GITHUB}", "c"], "path": ["A.kt", "B.kt", None], "start": [1, 2, 3]}
    pq.write_table(pa.table(rows), tmp_path / "files.parquet")
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "saved"))
    pq.write_table(pa.table({"prompt": ["a", GITHUB], "completion": [None, JWT]}), tmp_path / "pairs.parquet")
    (tmp_path / "raw.jsonl").write_text(json.dumps({"file_text": f"a\n{GITHUB}\n"}) + "\n{}\n")
    (tmp_path / "report.md").write_text(f"`{GITHUB}` `{GITHUB}`")
    (tmp_path / "model.safetensors").write_bytes(b"\0" + GITHUB.encode())
    (tmp_path / "latin.txt").write_bytes(b"\xe4")
    files = {path.name: path for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    assert secrets_in_files(files) == {
        "data-00000-of-00001.arrow: B.kt": Counter({"GitHub token": 1}),
        "files.parquet: B.kt": Counter({"GitHub token": 1}),
        "pairs.parquet": Counter({"GitHub token": 1, "JWT": 1}),
        "raw.jsonl": Counter({"GitHub token": 1}), "report.md": Counter({"GitHub token": 2})}


@pytest.mark.parametrize("before", range(0, 400, 7))
def test_a_secret_on_the_seam_of_two_blocks(before: int, tmp_path: Path,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    """In a file of gigabytes, the token that is cut in two is not found, or counted twice."""
    monkeypatch.setattr(secrets_scan, "BLOCK", 200)
    monkeypatch.setattr(secrets_scan, "OVERLAP", 60)
    (tmp_path / "a.txt").write_text("." * before + f" {GITHUB} " + "." * (400 - before))
    assert secrets_in_files({"a": tmp_path / "a.txt"}) == {"a": Counter({"GitHub token": 1})}


def test_a_refusal_names_files_and_kinds_but_no_secret(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The user does not learn where to look, or finds his token in the log of the build server."""
    files = {f"f{i:02d}.txt": tmp_path / f"f{i:02d}.txt" for i in range(13)}
    for path in files.values():
        path.write_text(f"{GITHUB}\n{GITHUB} {JWT}")
    with pytest.raises(PipelineError) as refused:
        refuse_secrets(files, allowed=False)
    said = str(refused.value)
    assert said.startswith("39 secrets in what would be published: f00.txt (GitHub token 2, JWT 1), f01.txt")
    assert said.endswith(", and 3 more; take them out, or publish them with --allow_secrets")
    assert "\n" not in said
    refuse_secrets(files, allowed=True)
    printed = capsys.readouterr().err
    assert "published all the same" in printed
    assert GITHUB not in said + printed
