"""What the Hub refuses or does not have: errors by name.

The server is `tests/hub.py`, on 127.0.0.1.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from quantkit import errors
from quantkit.hub import repository
from quantkit.jobs import convert, quantize
from tests.fake_hub import Fault, Hub
from tests.fake_hub_models import MODEL, SHARDED, TOKEN, TYPES, command, there

# huggingface_hub asks through requests before its version 1, and through httpx from there on
CERTIFICATES = "REQUESTS_CA_BUNDLE" if version("huggingface_hub")[:2] == "0." else "SSL_CERT_FILE"
Get = Callable[[str], Path]
ROOT = Path(__file__).parents[2]


def says(error: type[errors.QuantkitError], words: str, source: str, out: Path) -> None:
    """Both jobs raise `error` with `words` in one line, and no secret in it."""
    for job in (lambda: quantize(source, TYPES, out), lambda: convert(source, out)):
        with pytest.raises(errors.QuantkitError) as caught:
            job()
        said = str(caught.value)
        assert type(caught.value) is error, said
        for word in words.split(" & "):
            assert word in said, said
        assert "\n" not in said
        assert TOKEN not in said
        assert "key=" not in said
        assert tempfile.gettempdir() not in said
    assert not any(out.glob("*.gguf*"))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("hf://org", "hf://ORG/MODEL"),
        ("hf://", "hf://ORG/MODEL"),
        ("hf://../..", "hf://ORG/MODEL"),
        ("hf://org/a--b..c", "not a name"),
        ("hf://org/nothing", "hf://org/nothing & no such model & private & HF_TOKEN"),
        (f"{MODEL}@nothing", "no such revision"),
        (f"{MODEL}/nothing.gguf", "no such GGUF file"),
        (f"{MODEL}/config.json", "no such GGUF file"),
    ],
)
def test_no_such_source(source: str, words: str, sharded: Path, hub: Hub, tmp_path: Path) -> None:
    if source.count("/") > 3:  # a file: only quantize takes one
        with pytest.raises(errors.SourceNotFound, match=words):
            quantize(source, TYPES, tmp_path)
        with pytest.raises(errors.UnsupportedSource, match="one file"):
            convert(source, tmp_path)
    else:
        says(errors.SourceNotFound, words, source, tmp_path)


GATED = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model is restricted."}
REFUSED = {"X-Error-Message": "Invalid credentials in Authorization header"}


@pytest.mark.parametrize(
    ("kind", "fault", "error", "words"),
    [
        ("resolve", Fault(status=403, headers=GATED), errors.SourceForbidden,
         "gated; accept its terms at 127.0.0.1/org/ckpt & hf auth login"),
        ("api", Fault(status=403, headers=GATED), errors.SourceForbidden, "gated"),
        ("api", Fault(status=401), errors.SourceNotFound, "private & hf auth login"),
        ("api", Fault(status=401, headers=REFUSED), errors.SourceForbidden, "token was refused"),
        ("resolve", Fault(status=401, headers=REFUSED), errors.SourceForbidden, "refused"),
        ("resolve", Fault(status=403), errors.SourceForbidden, "may not read it"),
        ("blob", Fault(status=403), errors.SourceUnreachable, "store answers 403, 8 times"),
        ("resolve", Fault(status=404), errors.ShardMissing, "not there any more"),
        ("api", Fault(status=418), errors.SourceUnreachable, "answers 418"),
        ("resolve", Fault(status=418), errors.SourceUnreachable, "answers 418"),
        ("api", Fault(status=500), errors.SourceUnreachable, "answers 500, 8 times"),
        ("api", Fault(body=b"<html>"), errors.SourceUnreachable, "does not answer as the Hub"),
        ("api", Fault(body=b"[]"), errors.SourceUnreachable, "does not answer as the Hub"),
        ("api", Fault(body=b'{"id": "org/ckpt", "sha": "1", "siblings": [{"rfilename": "x"}]}'),
         errors.SourceUnreachable, "sizes"),
    ],
)  # fmt: skip
def test_answers_that_are_none(
    kind: str,
    fault: Fault,
    error: type[errors.QuantkitError],
    words: str,
    sharded: Path,
    hub: Hub,
    tmp_path: Path,
) -> None:
    hub.fault = lambda r: fault if r.kind == kind else None
    says(error, words, MODEL, tmp_path)


def test_nobody_there(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tries, and what may be the matter, where there has been no answer at all."""
    tries: list[int] = []
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("quantkit.hub.http.random.uniform", lambda a, b: tries.append(1) or 0.0)
    words = "no answer (Connect & from 127.0.0.1 & HF_ENDPOINT & HTTPS_PROXY & HF_HUB_OFFLINE"
    says(errors.SourceUnreachable, words, MODEL, tmp_path)
    assert len(tries) == 2  # pauses: one in each of two jobs


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("file:///etc/passwd", "sends us to where no web is"),
        ("ftp://127.0.0.1/x", "sends us to where no web is"),
        ("data:,x", "sends us to where no web is"),
        ("/org/ckpt/resolve/main/config.json", "round in a circle"),
    ],
)
@pytest.mark.parametrize("kind", ["api", "resolve"])
def test_an_address_that_waiting_does_not_mend(
    address: str, words: str, kind: str, sharded: Path, hub: Hub, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("quantkit.hub.http.random.uniform", lambda a, b: pytest.fail("it waits"))
    moved = Fault(status=302, headers={"Location": address})
    hub.fault = lambda r: moved if r.kind in (kind, "resolve") else None
    says(errors.SourceUnreachable, words, MODEL, tmp_path)


@pytest.mark.parametrize(
    ("variable", "value", "error", "words"),
    [
        ("HF_ENDPOINT", "", errors.UsageError, "HF_ENDPOINT is no address"),
        ("HF_ENDPOINT", "huggingface.co", errors.UsageError, "HF_ENDPOINT is no address"),
        ("HF_ENDPOINT", "file:///etc", errors.UsageError, "HF_ENDPOINT is no address"),
        ("HF_ENDPOINT", "http://[::", errors.UsageError, "mend or unset"),
        ("HF_ENDPOINT", "http://h:99999", errors.UsageError, "HF_ENDPOINT is no address"),
        ("HF_ENDPOINT", "http://a b", errors.UsageError, "HF_ENDPOINT is no address"),
        ("HF_TOKEN", "h\u00e4", errors.SourceForbidden, "the token holds characters"),
        ("HTTPS_PROXY", "socks9://x", errors.UsageError, "the proxy that HTTPS_PROXY"),
        (CERTIFICATES, "/nowhere", errors.UsageError, f"the certificates that {CERTIFICATES}"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "x", errors.UsageError, "huggingface_hub does not start"),
    ],
)
def test_an_environment_that_cannot_be(
    variable: str, value: str, error: type[errors.QuantkitError], words: str, tmp_path: Path
) -> None:
    """At once, and by the name of the variable."""
    program = (
        "from quantkit.model.open import open_source\nfrom quantkit import errors\n"
        "try: open_source('hf://org/model')\n"
        "except errors.QuantkitError as e: print(type(e).__name__, ascii(str(e)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "HF_ENDPOINT": "https://127.0.0.1:9", variable: value},
    )  # fmt: skip
    assert run.stdout.startswith(error.__name__), run.stdout + run.stderr
    assert words in run.stdout


def test_a_server_that_has_answered_is_given_time(
    sharded: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quantkit.hub import http
    from quantkit.hub.repository import Address

    Address.parse(MODEL).listing()
    monkeypatch.setattr(http, "TRIES", 4)
    calls: list[int] = []

    def step() -> None:
        calls.append(1)
        raise http.Again("no answer (Timeout)", silent=True)

    with pytest.raises(errors.SourceUnreachable, match="4 times over; run it again later"):
        http.patiently(MODEL, step)
    assert len(calls) == 4


def test_offline(hub: Hub, tmp_path: Path) -> None:
    run = command(tmp_path, "convert", MODEL, HF_HUB_OFFLINE="1")
    assert run.returncode == 1
    assert run.stderr.startswith(f"error: {MODEL}: HF_HUB_OFFLINE is set")
    assert len(run.stderr.splitlines()) == 1
    assert hub.log == []


def test_a_shard_missing_on_the_hub(broken: Callable[..., Path], hub: Hub, tmp_path: Path) -> None:
    source = broken(SHARDED)
    (source / "model-00002-of-00003.safetensors").unlink()
    hub.publish("org/ckpt", source)
    says(errors.ShardMissing, f"{MODEL}: 1 of 3 & model-00002", MODEL, there(tmp_path, "out"))


def test_a_shard_that_is_no_safetensors_file(
    broken: Callable[..., Path], hub: Hub, tmp_path: Path
) -> None:
    source = broken(SHARDED)
    shard = source / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-8])
    hub.publish("org/ckpt", source)
    says(errors.CorruptFile, "model-00002 & not a whole", MODEL, there(tmp_path, "out"))


def test_errors_of_small_files_name_the_model(
    broken: Callable[..., Path], hub: Hub, tmp_path: Path
) -> None:
    source = broken(SHARDED)
    (source / "config.json").write_text("{")
    hub.publish("org/ckpt", source)
    says(errors.CorruptFile, f"{MODEL}/config.json: not JSON", MODEL, there(tmp_path, "out"))
    (source / "config.json").unlink()
    hub.publish("org/ckpt", source)
    says(errors.SourceNotFound, f"{MODEL}: no config.json", MODEL, tmp_path / "out")
    (source / "m-Q8_0.gguf").write_bytes(b"GGUF")
    hub.publish("org/ckpt", source)
    says(errors.SourceNotFound, f"GGUF files: {MODEL}/m-Q8_0.gguf", MODEL, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "data", "error", "words"),
    [
        ("config.json", "{}", errors.ConfigError, "/config.json: 'architectures'"),
        ("config.json", '{"architectures": ["MixtralForCausalLM"]}', errors.ConfigError,
         "/config.json: & is missing"),
        ("model.safetensors.index.json", "[]", errors.CorruptFile,
         "/model.safetensors.index.json: a JSON object"),
        ("tokenizer.model", "x", errors.TokenizerError, "/tokenizer.model: not a SentencePiece"),
        ("tokenizer_config.json", "{", errors.CorruptFile, "/tokenizer_config.json: not JSON"),
        ("tokenizer_config.json", '{"added_tokens_decoder": 7}', errors.TokenizerError,
         ": malformed tokenizer files"),
        ("chat_template.jinja", b"\xff", errors.CorruptFile, "/chat_template.jinja: not UTF-8"),
        ("generation_config.json", "[1]", errors.CorruptFile,
         "/generation_config.json: a JSON object"),
        ("generation_config.json", '{"top_k": "x"}', errors.CorruptFile,
         "/generation_config.json: sampling_top_k is 'x'"),
        ("README.md", "---\nname: [\n---\n", errors.CorruptFile, "/README.md: malformed YAML"),
        ("README.md", "---\nversion: [1]\n---\n", errors.CorruptFile, "/README.md: version is"),
    ],
)  # fmt: skip
def test_errors_of_contents_name_the_model(
    name: str,
    data: str | bytes,
    error: type[errors.QuantkitError],
    words: str,
    broken: Callable[..., Path],
    hub: Hub,
    tmp_path: Path,
) -> None:
    """And never the directory in which the small files lie for a while."""
    source = broken(SHARDED)
    if name == "chat_template.jinja":
        config = source / "tokenizer_config.json"
        told = json.loads(config.read_text(encoding="utf-8"))
        config.write_text(json.dumps({**told, "chat_template": None}))
    (source / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    hub.publish("org/ckpt", source)
    says(error, f"{MODEL}{words}", MODEL, there(tmp_path, "out"))


def test_errors_of_a_tokenizer_json_name_the_model(
    checkpoint: Get, hub: Hub, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(checkpoint("qwen2-dense"), tmp_path / "ckpt"))
    original = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    merges = {"model": {**original["model"], "merges": [["a"]]}}
    for change, words in (
        ({"model": {"type": "Unigram"}}, "/tokenizer.json: a Unigram tokenizer"),
        ({"pre_tokenizer": {"type": "x"}}, "/tokenizer.json: "),
        ({"pre_tokenizer": None}, ": no pre-tokenizer of llama.cpp splits"),
        (merges, "/tokenizer.json: "),
    ):
        (source / "tokenizer.json").write_text(json.dumps({**original, **change}))
        hub.publish("org/ckpt", source)
        says(errors.TokenizerError, f"{MODEL}{words}", MODEL, there(tmp_path, "out"))
    (source / "tokenizer.json").unlink()
    (source / "vocab.json").write_text("[]")
    hub.publish("org/ckpt", source)
    says(errors.CorruptFile, f"{MODEL}/vocab.json: a JSON object", MODEL, tmp_path / "out")
    (source / "vocab.json").unlink()
    hub.publish("org/ckpt", source)
    says(errors.TokenizerError, f"{MODEL}: neither tokenizer.model", MODEL, tmp_path / "out")


@pytest.mark.parametrize(
    ("path", "small"),
    [
        ("config.json", True), ("tokenizer.json", True), ("tokenizer.model", True),
        ("model.safetensors.index.json", True), ("chat_template.jinja", True),
        ("additional_chat_templates/rag.jinja", True), ("README.md", True),
        ("model-00001-of-00002.safetensors", False), ("pytorch_model.bin", False),
        ("onnx/config.json", False), ("../config.json", False), ("..\\config.json", False),
        ("C:config.json", False), ("additional_chat_templates/../../x.jinja", False),
        ("evals.json", False),
    ],
)  # fmt: skip
def test_small_files(path: str, small: bool) -> None:
    """What is fetched, and that nothing gets out of the directory."""
    assert repository._is_small(path) is small
