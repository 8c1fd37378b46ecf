"""Encoders and tokenizers that others trained: from a folder, or by name from a hub.

Only numbers and words are taken from them. Code that a configuration names is never run, whatever
the user answers, and weights are read as safetensors only: a pickle can run code when it is opened.
"""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

from core.file_access.json_files import read_json_object
from core.file_access.regular_files import check_regular_files_in

HUB_ANSWERS_WITHIN = 4.0  # seconds
TRUE_WORDS = {"1", "on", "yes", "true"}
PICKLED_WEIGHTS = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
MODEL_FILES = "config.json and model.safetensors"
TOKENIZER_FILES = "tokenizer.json (or vocab.txt) and tokenizer_config.json"
PREPARATION_FILE = "preprocessor_config.json"


class Source(NamedTuple):
    """A folder or the name of a hub, and the setting that it was given as."""

    name: str
    key: str  # as the user writes it: "options.text.source=" or "--text-encoder "

    def __str__(self) -> str:
        return f"{self.key}{self.name}"

    @property
    def folder(self) -> Path | None:
        path = Path(self.name)
        return path if path.is_dir() else None


def load_config(source: Source) -> Any:
    """The architecture of an encoder, as a transformers configuration."""
    from transformers import AutoConfig

    _refuse_own_code(source, "config.json")
    config = _load(AutoConfig, source, MODEL_FILES)
    if getattr(config, "auto_map", None):
        raise ValueError(_own_code(source, "config.json"))
    return config


def load_model(source: Source, **options: Any) -> Any:
    """An encoder with its weights."""
    from transformers import AutoModel

    _refuse_own_code(source, "config.json")
    _refuse_pickled_weights(source)
    return _load(AutoModel, source, MODEL_FILES, use_safetensors=True, **options)


def model_of_config(settings: Any, **options: Any) -> Any:
    """An encoder without its weights: random ones, or shapes alone."""
    from transformers import AutoModel

    return AutoModel.from_config(settings, trust_remote_code=False, **options)


def load_tokenizer(source: Source) -> Any:
    from transformers import AutoTokenizer

    _refuse_own_code(source, "config.json")
    _refuse_own_code(source, "tokenizer_config.json")
    return _load(AutoTokenizer, source, TOKENIZER_FILES)


def hide_progress() -> None:
    """Have the library draw no bars while it loads; a command draws its own."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def load_sound_preparation(source: Source) -> Any:
    """What turns sound into the input of an encoder."""
    from transformers import AutoFeatureExtractor

    _refuse_own_code(source, PREPARATION_FILE)
    return _load(AutoFeatureExtractor, source, PREPARATION_FILE)


def load_image_preparation(source: Source) -> Any:
    """What turns pictures into the input of an encoder."""
    from transformers import AutoImageProcessor

    _refuse_own_code(source, PREPARATION_FILE)
    # the one way that is there on every machine: another gives other numbers
    return _load(AutoImageProcessor, source, PREPARATION_FILE, backend="pil")


def load_recogniser(source: Source) -> Any:
    """A pipeline that turns sound into words with times; its model is one that spells (CTC) or one
    that writes (Whisper)."""
    from transformers import AutoModelForCTC, AutoModelForSpeechSeq2Seq, pipeline

    writes = load_config(source).is_encoder_decoder
    _refuse_pickled_weights(source)
    kind = AutoModelForSpeechSeq2Seq if writes else AutoModelForCTC
    model = _load(kind, source, MODEL_FILES, use_safetensors=True)
    return pipeline(
        "automatic-speech-recognition",
        model=model.eval(),
        tokenizer=load_tokenizer(source),
        feature_extractor=load_sound_preparation(source),
        device="cpu",
        trust_remote_code=False,
    )


def _load(kind: Any, source: Source, files: str, **options: Any) -> Any:
    """``kind.from_pretrained``: from the folder or the copy that an earlier run fetched, else from
    the hub."""
    options["trust_remote_code"] = False
    if source.folder is not None:
        check_regular_files_in(source.folder)  # transformers opens whichever it finds
    try:
        return kind.from_pretrained(source.name, local_files_only=True, **options)
    except Exception as error:  # damaged files make the library raise nearly anything
        if source.folder is not None:
            raise ValueError(
                f"{source}: transformers cannot load it; the folder must hold {files} "
                f"({_one_line(error)})"
            ) from None
    _refuse_without_hub(source, files)
    try:
        return kind.from_pretrained(source.name, **options)
    except Exception as error:
        raise ValueError(
            f"{source}: the hub has no such model, or none that can be read safely: {files} are "
            f"needed ({_one_line(error)})"
        ) from None


def _refuse_own_code(source: Source, name: str) -> None:
    """ValueError when a file of the folder asks for Python code that comes with it."""
    if source.folder is None:
        return
    path = source.folder / name
    if not path.exists():
        return
    if read_json_object(path).get("auto_map"):
        raise ValueError(_own_code(source, name))


def _own_code(source: Source, name: str) -> str:
    return (
        f"{source}: its {name} asks for Python code of its own (auto_map), which is never run; "
        "give an encoder of a kind that transformers has itself, or take auto_map out if it is one"
    )


def _refuse_pickled_weights(source: Source) -> None:
    """ValueError when the folder has weights, but only as pickles."""
    folder = source.folder
    if folder is None or any(folder.glob("*.safetensors")):
        return
    for pattern in PICKLED_WEIGHTS:
        for path in sorted(folder.glob(pattern)):
            raise ValueError(
                f"{source}: {path.name} is a pickle, which can run code when it is opened, and is "
                "never read; where you trust it, make a folder of safetensors from it: python -c "
                f"\"from transformers import AutoModel as M; M.from_pretrained('{folder}')"
                ".save_pretrained('DIR')\""
            )


def _refuse_without_hub(source: Source, files: str) -> None:
    """ValueError, within a few seconds, when the source is no folder and no hub answers."""
    is_path = source.name.count("/") > 1 or source.name.startswith((".", "/", "~"))
    if is_path:
        raise ValueError(f"{source}: no such folder; it must hold {files}")
    silence = hub_silence()
    if silence:
        raise ValueError(
            f"{source} is no folder, and no hub answers ({silence}); give {source.key}DIR, "
            f"a folder that holds {files}"
        )


def hub_address() -> str:
    """The hub that ``HF_ENDPOINT`` says, or the usual one."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def hub_silence() -> str:
    """Which hub does not answer within a few seconds, and why; empty when it does."""
    hub = hub_address()
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in TRUE_WORDS:
        return f"{hub}: HF_HUB_OFFLINE is set"
    silence = _why_silent(hub)
    return f"{hub}: {silence}" if silence else ""


def _why_silent(hub: str) -> str:
    """Why the hub does not answer; empty when it does. A name server may be silent for longer than
    any time limit on a connection, so another thread asks."""
    reasons = [f"no answer within {HUB_ANSWERS_WITHIN:g} s"]

    def ask() -> None:
        try:
            urllib.request.urlopen(hub, timeout=HUB_ANSWERS_WITHIN).close()
            reasons.append("")
        except urllib.error.HTTPError:  # refusing is answering
            reasons.append("")
        except (OSError, ValueError) as error:
            reasons.append(_one_line(getattr(error, "reason", error)))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_ANSWERS_WITHIN)
    return reasons[-1]


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:300]
