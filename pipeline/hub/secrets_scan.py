"""Secrets in texts: private keys, tokens of well-known services, and JWTs.

A kind is recognised by the prefix that its service uses, so that few texts are searched in full; the formats
are those that the services document (GitHub, GitLab, AWS, Slack, ...; for JWTs RFC 7519, for keys RFC 7468).
Examples are not reported: `AKIAIOSFODNN7EXAMPLE`, `ghp_xxxxxxxx`, the head of a key without the key.  Nor are
passwords: they have no format that distinguishes them from other text.
"""
import base64
import binascii
import contextlib
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.run.errors import PipelineError, shown_path

FEWEST_CHARACTERS = 8  # distinct ones; a placeholder has fewer
BLOCK, OVERLAP = 1 << 23, 1 << 14  # characters searched at a time, and again with the next block
SNIFFED = 8192  # a NUL in so many first bytes marks a binary file, as for git
SHOWN = 10  # files that a message names
JSON_ESCAPE = re.compile(r'\\[nrtbf"/]')


def _has_json_head(found: str) -> bool:
    """Return whether the first part of a JWT is a header as RFC 7519 defines it."""
    part = found.partition(".")[0]
    try:
        return "alg" in json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (ValueError, TypeError, binascii.Error):
        return False


def _has_number(found: str) -> bool:
    """Return whether the first part of a Discord token is a user's number."""
    part = found.partition(".")[0]
    try:
        return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)).isdigit()
    except (ValueError, binascii.Error):
        return False


class Kind(NamedTuple):
    """A kind of secret: one of `beginnings` stands in every text that has one."""
    name: str
    beginnings: tuple[str, ...]
    pattern: re.Pattern
    is_one: Callable[[str], bool] = lambda found: True


def _kind(name: str, beginnings: str, pattern: str,
          is_one: Callable[[str], bool] = lambda found: True) -> Kind:
    """Return a kind whose `pattern` begins a word."""
    whole = re.compile(rf"(?<![A-Za-z0-9_])(?:{pattern})", re.ASCII)
    return Kind(name, tuple(beginnings.split()), whole, is_one)


WORD = "[A-Za-z0-9_-]"
KINDS = (
    # the head, and within a few lines some of the key: code that reads keys names the head alone
    Kind("private key", ("PRIVATE KEY",), re.compile(
        r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----[\s\S]{1,400}?[A-Za-z0-9+/=]{40}")),
    Kind("private key", ("PuTTY-User-Key-File",), re.compile(
        r"PuTTY-User-Key-File-\d[\s\S]{1,4000}?Private-Lines[\s\S]{1,80}?[A-Za-z0-9+/=]{40}")),
    _kind("private key", "AGE-SECRET-KEY-", r"AGE-SECRET-KEY-1[A-Z0-9]{58}\b"),
    _kind("JWT", "eyJ", rf"eyJ{WORD}{{10,}}\.eyJ{WORD}{{10,}}\.{WORD}{{16,}}", _has_json_head),
    _kind("AWS key", "AKIA ASIA ABIA ACCA", r"(?:AKIA|ASIA|ABIA|ACCA)[0-9A-Z]{16}\b"),
    _kind("Anthropic key", "sk-ant-", rf"sk-ant-[a-z]+\d\d-{WORD}{{80,}}"),
    _kind("Atlassian token", "ATATT3", r"ATATT3[A-Za-z0-9_=-]{150,}"),
    _kind("Azure storage key", "AccountKey=", r"AccountKey=[A-Za-z0-9+/]{86}=="),
    _kind("Databricks token", "dapi", r"dapi[0-9a-f]{32}\b"),
    _kind("DigitalOcean token", "_v1_", r"do[opr]_v1_[0-9a-f]{64}\b"),
    _kind("Discord token", ".", rf"[MNO][DTjz]{WORD}{{22,26}}\.{WORD}{{6}}\.{WORD}{{27,38}}\b", _has_number),
    _kind("Docker token", "dckr_pat_", rf"dckr_pat_{WORD}{{27,}}"),
    _kind("GitHub token", "ghp_ gho_ ghu_ ghs_ ghr_", r"gh[pousr]_[A-Za-z0-9]{36,255}\b"),
    _kind("GitHub token", "github_pat_", r"github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}\b"),
    _kind("GitLab token", "glpat- gldt- glft- glsoat- glrt- glcbt- glimt- glptt- glagent- gloas-",
          r"gl(?:pat|dt|ft|soat|rt|cbt|imt|ptt|agent|oas)-[A-Za-z0-9_.-]{20,}"),
    _kind("Google key", "AIza", rf"AIza{WORD}{{35}}(?![A-Za-z0-9_-])"),
    _kind("Google key", "GOCSPX-", rf"GOCSPX-{WORD}{{28}}(?![A-Za-z0-9_-])"),
    _kind("Hugging Face token", "hf_ api_org_", r"(?:hf|api_org)_[A-Za-z0-9]{34,40}\b"),
    _kind("JetBrains token", "perm: perm-",
          r"perm[:-][A-Za-z0-9+/=]{4,}\.[A-Za-z0-9+/=]{4,}\.[A-Za-z0-9]{30,}\b"),
    _kind("Mailchimp key", "-us", r"[0-9a-f]{32}-us\d{1,2}\b"),
    _kind("Mailgun key", "key-", r"key-[0-9a-f]{32}\b"),
    _kind("npm token", "npm_", r"npm_[A-Za-z0-9]{36}\b"),
    _kind("OpenAI key", "T3BlbkFJ", rf"sk-{WORD}*T3BlbkFJ{WORD}{{20,}}"),
    _kind("PyPI token", "pypi-Ag", rf"pypi-Ag(?:EIcHlwaS5vcmc|ENdGVzdC5weXBpLm9yZw){WORD}{{50,}}"),
    _kind("SendGrid key", "SG.", rf"SG\.{WORD}{{22}}\.{WORD}{{43}}(?![A-Za-z0-9_-])"),
    _kind("Shopify token", "shpat_ shpca_ shppa_ shpss_", r"shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}\b"),
    _kind("Slack token", "xox xapp-",
          r"xox[abeoprs]-(?:\d+-)+[A-Za-z0-9]{16,}|xapp-\d-[A-Z0-9]+-\d+-[a-z0-9]{30,}"),
    _kind("Slack webhook", "hooks.slack.com",
          r"hooks\.slack\.com/(?:services|workflows)/T\w+/[AB]\w+/\w{16,}"),
    _kind("Square token", "sq0", rf"sq0(?:csp-{WORD}{{43}}|atp-{WORD}{{22}})"),
    _kind("Stripe key", "k_live_", r"[rs]k_live_[0-9A-Za-z]{24,}\b"),
    _kind("Telegram token", ":AA", rf"\d{{8,10}}:AA{WORD}{{33}}(?![A-Za-z0-9_-])"),
    _kind("Twilio key", "SK", r"SK[0-9a-f]{32}\b"),
    _kind("Vault token", "hvs.", rf"hvs\.{WORD}{{90,}}"),
)


def find_secrets(text: str) -> Counter[str]:
    """Return how often each kind of secret stands in `text`.  About 10 ms per megabyte."""
    return Counter(name for name, _ in _places(text))


def _places(text: str) -> Iterator[tuple[str, int]]:
    """Yield (name of the kind, where it begins) of each secret in `text`."""
    for kind in KINDS:
        if not any(beginning in text for beginning in kind.beginnings):
            continue
        for match in kind.pattern.finditer(text):
            secret = match[0]
            placeholder = len(set(secret[-24:])) < FEWEST_CHARACTERS or "EXAMPLE" in secret.upper()
            if not placeholder and kind.is_one(secret):
                yield kind.name, match.start()


def secrets_in_files(files: dict[str, Path]) -> dict[str, Counter[str]]:
    """Return {name: how often each kind} for those of the `files` that have secrets; of a Parquet or Arrow
    file with a column `path`, by `NAME: PATH`.  Other binary files are skipped.  Memory: 8 MB of a text,
     256 rows of a Parquet file, one batch of an Arrow file."""
    found: dict[str, Counter[str]] = {}
    for name, path in files.items():
        rows = _in_rows(path, name) if path.suffix in (".parquet", ".arrow") else _in_text(path, name)
        for place, kinds in rows:
            found.setdefault(place, Counter()).update(kinds)
    return found


def _in_rows(path: Path, name: str) -> Iterator[tuple[str, Counter[str]]]:
    """Yield (place, kinds) for the rows of a Parquet or Arrow file whose strings hold secrets."""
    # imported here: 0.2 s that the worker processes of stage 2, and publishing a model, do not need
    import pyarrow.parquet

    with contextlib.ExitStack() as stack:
        if path.suffix == ".parquet":
            batches = stack.enter_context(pyarrow.parquet.ParquetFile(path)).iter_batches(batch_size=256)
        else:  # as the library datasets writes it
            batches = pyarrow.ipc.open_stream(stack.enter_context(pyarrow.memory_map(str(path))))
        for batch in batches:
            texts = {field.name: batch.column(field.name).to_pylist() for field in batch.schema
                     if pyarrow.types.is_string(field.type) or pyarrow.types.is_large_string(field.type)}
            places = texts.get("path", [None] * batch.num_rows)
            for column in texts.values():
                if not find_secrets("\n".join(text or "" for text in column)):
                    continue
                for place, text in zip(places, column, strict=True):
                    if kinds := find_secrets(text or ""):
                        yield f"{name}: {place}" if place else name, kinds


def _in_text(path: Path, name: str) -> Iterator[tuple[str, Counter[str]]]:
    """Yield (name, kinds) for the blocks of a text file that hold secrets."""
    with open(path, "rb") as file:
        if b"\0" in file.read(SNIFFED):
            return
    is_json = path.suffix in (".json", ".jsonl")
    with open(path, encoding="utf-8", errors="replace") as file:
        seen = ""
        while block := file.read(BLOCK):
            text = seen + block
            # an escape becomes as many spaces, so that a secret's position does not change
            plain = JSON_ESCAPE.sub("  ", text) if is_json else text
            # what begins after the limit is found with the next block
            limit = len(text) - (OVERLAP if len(block) == BLOCK else 0)
            if kinds := Counter(kind for kind, start in _places(plain) if start < limit):
                yield name, kinds
            seen = text[limit:]
        if seen and (kinds := find_secrets(JSON_ESCAPE.sub("  ", seen) if is_json else seen)):
            yield name, kinds


def listed(found: dict[str, Counter[str]]) -> str:
    """Return the first SHOWN of the files with secrets, with kinds and counts, on one line."""
    parts = [f"{shown_path(name)} ({', '.join(f'{kind} {n}' for kind, n in sorted(kinds.items()))})"
             for name, kinds in found.items()]
    more = [f"and {len(parts) - SHOWN} more"] if len(parts) > SHOWN else []
    return ", ".join(parts[:SHOWN] + more)


def refuse_secrets(files: dict[str, Path], allowed: bool) -> None:
    """Raise PipelineError where what is to be published holds secrets; if they are `allowed`, name them."""
    found = secrets_in_files(files)
    if not found:
        return
    summary = f"{sum(map(Counter.total, found.values()))} secrets in what would be published: {listed(found)}"
    if not allowed:
        raise PipelineError(f"{summary}; take them out, or publish them with --allow_secrets")
    print(f"published all the same (--allow_secrets): {summary}", file=sys.stderr)
