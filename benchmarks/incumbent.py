"""Training beside the incumbent: samples per CPU second and peak memory of MMSA and of this project, on
the same data, at equal batch sizes, one thread each.

    python benchmarks/incumbent.py [repeats=3] [rows=self_mm_128,cenet_same] [show=yes]

MMSA's environment is made under ``build/incumbent`` the first time: MMSA 2.2.1 from PyPI, with the
torch, transformers and NumPy of this environment, so that both compute with the same products.
What of MMSA no longer runs with them is mended in ``benchmarks/incumbent_peer.py``, which runs its own
training loops. PyPI's MMSA has no CENet, and HSCL was never in it: their published mathematics is
restated in plain PyTorch there (``benchmarks/incumbent_plain.py``).

The data are generated, with MOSI's shapes: up to 50 tokens, 375 frames of sound and 500 of video,
lengths of a fifth to all of that. BERTs have random weights. Of two epochs the second counts: in
the first, TFR-Net does not learn to rebuild, and loops are compiled. Pairs are run in turn; a ratio
is of one pair, and medians are shown. CPU seconds of one process, all its threads together, are
what others on the machine disturb least; peak memory is that of the whole process. Runs here have
``zero_stage=0`` and ``optim.fused=true``, which suit one process and change rounding only.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.common import made_by, paste, read_words, refuse_others, run_command  # noqa: E402
from launch.reports.tables import markdown_table  # noqa: E402

BUILD = ROOT / "build/incumbent"
RESULTS = ROOT / "benchmarks/results/incumbent.json"
PACKAGES = ("MMSA==2.2.1", "easydict==1.14", "nvidia-ml-py3==7.352.0")
LONGEST = {"text": 50, "audio": 375, "vision": 500}
WIDTHS = {"audio": 5, "vision": 20}
SHORTEST = 0.2  # of the longest
BERTS = {"128": (2, 512), "768": (12, 3072)}  # width -> heads and hidden units; two layers each
CLIPS = {"many": 256, "batch": 128, "few": 48}  # of the train split; the slow ones get few
VOCABULARY = 30522

SAME_CENET = (
    "options.memory=[]",
    "options.front=mlp",
    "options.frame_mask=false",
    "options.freeze_embeddings=true",
    "options.inputs.standardise=false",
)
# row -> what it is called, recipe, clips, width of BERT, batch size, settings
ROWS: dict[str, tuple[str, str, str, str, int, tuple[str, ...]]] = {
    "self_mm_128": ("Self-MM, BERT 2×128", "self_mm/mosi", "many", "128", 64, ()),
    "self_mm_768": ("Self-MM, BERT 2×768", "self_mm/mosi", "many", "768", 64, ()),
    "self_mm_bf16": (
        "the same, `precision=bf16` here",
        "self_mm/mosi",
        "many",
        "768",
        64,
        ("precision=bf16",),
    ),
    "cenet_same": ("CENet, same mathematics", "cenet/mosi", "many", "128", 64, SAME_CENET),
    "cenet_recipe": ("CENet by its recipe", "cenet/mosi", "many", "128", 64, ()),
    "tfr_net": ("TFR-Net, 20 % missing", "tfr_net/mosi", "few", "128", 24, ("options.cmd=5",)),
    "hscl": ("HSCL", "hscl/mosi", "batch", "128", 128, ()),
}
LEAST = dict.fromkeys(ROWS, 3.0) | {"self_mm_768": 1.8, "self_mm_bf16": 1.8}  # ratios to reach
TITLE = """Training beside MMSA 2.2.1 on the same generated data of MOSI's shapes, at equal batch sizes: samples per CPU
second of one thread, medians of pairs run in turn, and the peak memory of the process
(`benchmarks/incumbent.py`). CENet and HSCL, which PyPI's MMSA does not have, are restated in plain PyTorch:"""


def make_environment() -> Path:
    """The Python of MMSA's environment."""
    python = BUILD / "environment/bin/python"
    done = BUILD / "environment/done"
    if done.is_file() and done.read_text(encoding="utf-8") == sys.prefix:
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", BUILD / "environment"], check=True)
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", *PACKAGES]
    subprocess.run(install, check=True)
    (packages,) = (BUILD / "environment/lib").glob("python*/site-packages")
    # what is not installed there is taken from here
    (packages / "shared.pth").write_text(str(Path(np.__file__).parents[1]) + "\n", encoding="utf-8")
    done.write_text(sys.prefix, encoding="utf-8")
    return python


def make_berts() -> None:
    """Folders of BERTs with random weights, with a tokenizer that nobody asks anything."""
    import torch
    from transformers import BertConfig, BertModel

    for width, (heads, hidden) in BERTS.items():
        folder = BUILD / f"bert-{width}"
        if (folder / "vocab.txt").is_file():
            continue
        torch.manual_seed(1)
        config = BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=int(width),
            num_hidden_layers=2,
            num_attention_heads=heads,
            intermediate_size=hidden,
        )
        BertModel(config).save_pretrained(folder)
        named = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        words = named + [f"word{number}" for number in range(VOCABULARY - len(named))]
        (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")


def make_split(name: str, size: int, rng: np.random.Generator) -> dict[str, Any]:
    """A split of an MMSA file."""
    share = rng.uniform(SHORTEST, 1, size)
    lengths = {m: np.maximum(3, (share * most).astype(int)) for m, most in LONGEST.items()}
    places = {m: np.arange(most) < lengths[m][:, None] for m, most in LONGEST.items()}  # (N, T)
    tokens = rng.integers(1000, VOCABULARY, places["text"].shape) * places["text"]
    split: dict[str, Any] = {
        "id": [f"{name}{number}$_$0" for number in range(size)],
        "raw_text": ["nobody reads this"] * size,
        "text_bert": np.stack([tokens, places["text"], 0 * tokens], axis=1).astype(np.float32),
        "regression_labels": rng.integers(-15, 16, size).astype(np.float32) / 5,
    }
    for m, width in WIDTHS.items():
        frames = rng.normal(size=(*places[m].shape, width)) * places[m][..., None]
        split |= {m: frames.astype(np.float32), f"{m}_lengths": lengths[m].tolist()}
    return split


def make_data() -> None:
    """MMSA's files, and shards of them with codebooks."""
    for name, size in CLIPS.items():
        file, shards = BUILD / f"{name}.pkl", BUILD / f"{name}-shards"
        if (shards / "made").is_file():
            continue
        rng = np.random.default_rng(0)
        sizes = {"train": size, "valid": 24, "test": 24}
        content = {split: make_split(split, count, rng) for split, count in sizes.items()}
        with file.open("wb") as stream:
            pickle.dump(content, stream)
        convert = ["-m", "data_shards.convert", str(file), "--out", str(shards)]
        for words in (convert + ["--dataset", "mosi"], ["-m", "data_shards.codebook", str(shards)]):
            subprocess.run(
                [sys.executable, *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
            )
        (shards / "made").touch()


def measure_own(row: str) -> dict[str, float]:
    """Two epochs in this process."""
    from launch import loop
    from launch.config import load_recipe, override
    from launch.engine.processes import init_processes, shutdown_processes

    _, recipe, clips, width, batch, settings = ROWS[row]
    speeds = []
    train_epoch = loop._train_epoch

    def timed(session: Any) -> int:
        begin = time.process_time()
        samples = train_epoch(session)
        speeds.append(samples / (time.process_time() - begin))
        return samples

    loop._train_epoch = timed
    init_processes()
    with tempfile.TemporaryDirectory() as folder:
        words = [f"data={BUILD / f'{clips}-shards'}", f"run_dir={folder}/run", "epochs=2"]
        words += [f"batch_size={batch}", f"options.text.source={BUILD / f'bert-{width}'}"]
        words += ["patience=0", "zero_stage=0", "optim.fused=true"]  # for one process, the fastest
        run = override(load_recipe(recipe), [*words, *settings])
        with loop.prepare(run, quiet=True) as session:
            for _ in loop.fit(session):
                pass
    shutdown_processes()
    return {"samples_per_second": speeds[-1], "peak_mib": peak_mib()}


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(python: Path | str, script: str, *words: str) -> dict[str, float]:
    """What a script says in its last line, run by itself with one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [python, ROOT / "benchmarks" / script, *words],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{script} {' '.join(words)} failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure_pair(python: Path, row: str) -> dict[str, dict[str, float]]:
    _, _, clips, width, batch, _ = ROWS[row]
    given = (row, str(BUILD / f"{clips}.pkl"), str(BUILD / f"bert-{width}"), width, str(batch))
    peer = measure(python, "incumbent_peer.py", *given)
    return {"peer": peer, "own": measure(sys.executable, "incumbent.py", f"own={row}")}


def median(pairs: list[dict[str, dict[str, float]]], side: str, name: str) -> float:
    return statistics.median(pair[side][name] for pair in pairs)


def table(results: dict[str, Any]) -> str:
    header = ["case", "peer, samples/s", "here", "ratio", "range", "peak MiB, peer", "here"]
    body = []
    for row in [row for row in ROWS if row in results]:
        pairs = results[row]["pairs"]
        name = "samples_per_second"
        ratios = [pair["own"][name] / pair["peer"][name] for pair in pairs]
        speeds = [f"{median(pairs, side, name):.1f}" for side in ("peer", "own")]
        peaks = [f"{median(pairs, side, 'peak_mib'):.0f}" for side in ("peer", "own")]
        spread = f"{min(ratios):.1f} to {max(ratios):.1f}"
        body.append([ROWS[row][0], *speeds, f"{statistics.median(ratios):.1f}", spread, *peaks])
    return markdown_table(header, body)


def main() -> None:
    defaults = {"repeats": "3", "rows": ",".join(ROWS), "own": "", "show": ""}
    options, others = read_words(defaults)
    refuse_others(others, defaults)
    if options["own"]:
        print(json.dumps(measure_own(options["own"])))
        return
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    if not options["show"]:
        BUILD.mkdir(parents=True, exist_ok=True)
        python = make_environment()
        make_berts()
        make_data()
        pairs: dict[str, list[Any]] = {row: [] for row in options["rows"].split(",")}
        for _ in range(int(options["repeats"])):
            for row in pairs:
                pairs[row].append(measure_pair(python, row))
                results[row] = {"pairs": pairs[row], "least_ratio": LEAST[row], "from": made_by()}
                RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
                print(row, pairs[row][-1], flush=True)
    said = f"{TITLE}\n\n{table(results)}"
    paste(said, "incumbent", ROOT / "docs/sentiment.md")
    print(said)


if __name__ == "__main__":
    sys.exit(run_command(main))
