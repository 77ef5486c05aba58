"""The commands that a release's readers copy: to download a file, and to run it. The card and the
page show the same."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import quote

from quantkit.gguf.splits import unsplit_name
from quantkit.loading.kinds import PREFIX
from quantkit.model.provenance import HUB
from quantkit.releases.manifest import CHECKSUMS, Manifest
from quantkit.releases.purpose import Purpose
from quantkit.reporting.table import Row


class Command(NamedTuple):
    """A command: the program that it is for, what it does, and its text."""

    program: str
    what: str
    text: str


class Sense(NamedTuple):
    """What an encoder adds: how its tensors' names begin, what the Hub calls such a model, and how
    llama-mtmd-cli is asked."""

    tensors: str
    task: str
    asked: str


SENSES = {
    "sees": Sense("v.", "image-text-to-text", '--image PICTURE.jpg -p "What is this?"'),
    "hears": Sense("a.", "audio-text-to-text", '--audio SOUND.wav -p "What is said?"'),
}


def senses(manifest: Manifest) -> list[str]:
    """What the model of a release does beside reading, as keys of `SENSES`."""
    names = [t.name for f in manifest.files if f.type.startswith(PREFIX) for t in f.tensors]
    return [verb for verb, s in SENSES.items() if any(name.startswith(s.tensors) for name in names)]


def download(manifest: Manifest, row: Row) -> str:
    """The command that downloads a type, all of its splits; "" for what is not on the Hub."""
    if not manifest.repo:
        return ""
    first = manifest.first_file(row.type)
    name = first if row.files == 1 else f"{unsplit_name(first)}-?????-of-?????.gguf"
    return f"hf download {manifest.repo} --include {shlex.quote(name)} --local-dir ."


def address(manifest: Manifest, name: str) -> str:
    """Where a file is downloaded: on the Hub, or beside what names it."""
    where = f"{HUB}{manifest.repo}/resolve/main/" if manifest.repo else "./"
    return where + quote(name)


def run_commands(
    manifest: Manifest,
    usual: Row,
    chats: bool,
    purpose: Purpose | None = None,
    encoders: Sequence[Row] = (),
) -> list[Command]:
    """Commands that run the usual file; `chats`: it has a chat template; `purpose`: what it is for,
    where it does not continue a text; `encoders`: the rows of those beside it."""
    repo, first = manifest.repo, manifest.first_file(usual.type)
    file, context = shlex.quote(first), f"-c {usual.context}"
    here = f"-m {file} {context}"
    there = f"-hf {repo}:{usual.type} {context}" if repo else here
    text = f"sha256sum -c {CHECKSUMS} --ignore-missing"
    check = Command("Checking a download", "", text)
    if purpose is not None:
        return [*_of_purpose(purpose, here, there, manifest, usual), check]
    program, prompt = ("llama-cli", "") if chats else ("llama-completion", ' -p "Once upon a time"')
    seeing = f"-m {file} --mmproj {shlex.quote(encoders[0].name)} {context}" if encoders else here
    served = there if repo else seeing  # from the Hub, llama.cpp gets the encoder by itself
    found = [Command("llama.cpp", "a server with a web page", f"llama-server {served}")]
    if usual.experts_on_cpu_ram_bytes is not None:
        what = "the same, experts in main memory and the rest on the GPU"
        found.append(Command("llama.cpp", what, f"llama-server {served} -ngl 99 --cpu-moe"))
    found.append(Command("llama.cpp", "in a terminal", f"{program} {there}{prompt}"))
    if repo:
        found.append(Command("llama.cpp", "a file that is here", f"{program} {here}{prompt}"))
        if encoders:
            text = f"llama-server {seeing}"
            found.append(Command("llama.cpp", "a server, of files that are here", text))
    for verb in senses(manifest) if encoders else ():
        text = f"llama-mtmd-cli {seeing} {SENSES[verb].asked}"
        found.append(Command("llama.cpp", f"in a terminal, where it {verb}", text))
    if usual.files == 1:  # Ollama takes no splits
        if repo:
            text = f"ollama run hf.co/{repo}:{usual.type}"
            found.append(Command("Ollama", "from the Hub", text))
        name = _ollama_name(manifest)
        text = f"ollama create {name} -f Modelfile && ollama run {name}"
        found.append(Command("Ollama", "from a file that is here", text))
    else:
        whole = shlex.quote(f"{unsplit_name(first)}.gguf")
        text = f"quantkit merge {file} -o {whole}"
        found.append(Command("Ollama", "it takes no splits: join them, then see Modelfile", text))
    if repo:
        found.append(Command("LM Studio", "from the Hub", f"lms get {HUB}{repo}"))
    found.append(Command("LM Studio", "a file that is here", f"lms import {file}"))
    return [*found, check]


def _of_purpose(
    purpose: Purpose, here: str, there: str, manifest: Manifest, usual: Row
) -> list[Command]:
    found = []
    if purpose.serve:
        found.append(Command("llama.cpp", "a server", f"llama-server {there} {purpose.serve}"))
    places = {there: "in a terminal"} | ({here: "a file that is here"} if here != there else {})
    for model, what in places.items():
        words = (purpose.program, model, purpose.options, "-p", f'"{purpose.prompt}"')
        found.append(Command("llama.cpp", what, " ".join(filter(None, words))))
    if purpose.ollama:
        if usual.files == 1:
            text = f"ollama create {_ollama_name(manifest)} -f Modelfile"
            found.append(Command("Ollama", "then ask for vectors at /api/embed", text))
        file = shlex.quote(manifest.first_file(usual.type))
        found.append(Command("LM Studio", "a file that is here", f"lms import {file}"))
    return found


def _ollama_name(manifest: Manifest) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", manifest.name.lower()).strip("-.") or "model"
