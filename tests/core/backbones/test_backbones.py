"""Five kinds of encoders in front of a sentiment model: padding, the order of samples, dropout,
adaptation, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny_media_models import save_vit, save_wav2vec2, save_whisper
from tiny_text_models import WORDS, save_bert, save_decoder

from core.batch import Utterances
from core.building import build_model
from core.dropout import SampleDropout, number_dropouts, sample_masks
from core.encoders.backbones.adaptation import bases_of, layer_heights, transformer_layers
from core.encoders.backbones.media_encoders import EncoderConfig
from core.encoders.backbones.pooling import Pool
from core.encoders.inputs import InputConfig
from core.encoders.text import TextConfig
from core.model import DataSpec, MediaKind
from core.models import MODELS

SIDE = 16
SAVERS = {
    "bert": save_bert,
    "decoder": save_decoder,
    "wav2vec2": save_wav2vec2,
    "whisper": save_whisper,
    "vit": save_vit,
}
KINDS = list(SAVERS)
ROLE = {
    "bert": "text",
    "decoder": "text",
    "wav2vec2": "audio",
    "whisper": "audio",
    "vit": "vision",
}


@pytest.fixture(scope="session")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Kind -> the folder of a tiny random encoder."""
    folder = tmp_path_factory.mktemp("encoders")
    return {kind: save(folder / kind) for kind, save in SAVERS.items()}


def spec_of(role: str) -> DataSpec:
    """Data of words, sound or pictures alone."""
    widths = {"text": 0, "audio": 1, "vision": 3 * SIDE * SIDE}
    longest = {"text": 12, "audio": 9000, "vision": 5}
    media: dict[str, MediaKind] = {"audio": "sound", "vision": "pictures"}
    return DataSpec(
        task="sentiment",
        features={role: widths[role]},
        max_length={role: longest[role]},
        num_train=6,
        vocab_size=len(WORDS),
        unknown_id=1,
        media={role: media[role]} if role in media else {},
    )


def options_of(kind: str, folder: Path, **changes: Any) -> Any:
    role = ROLE[kind]
    if role == "text":
        text = TextConfig(source=str(folder), **changes)
        return MODELS["baseline"].Config(modalities=("text",), text=text)
    inputs = InputConfig(**{role: EncoderConfig(source=str(folder), **changes)})
    return MODELS["baseline"].Config(modalities=(role,), inputs=inputs)


def model_of(kind: str, folder: Path, **changes: Any) -> Any:
    torch.manual_seed(1)
    return build_model("baseline", options_of(kind, folder, **changes), spec_of(ROLE[kind]))


def batch_of(kind: str, lengths: tuple[int, ...] = (5, 1, 3, 0)) -> Utterances:
    """Samples of other lengths, in units of a word, 1,700 samples of sound, a picture."""
    role, size = ROLE[kind], len(lengths)
    unit = 1700 if role == "audio" else 1
    count = torch.tensor(lengths) * unit
    longest = int(count.max())
    generator = torch.Generator().manual_seed(3)
    if role == "text":
        frames = torch.randint(4, len(WORDS), (size, longest), generator=generator)
    elif role == "audio":
        frames = 0.1 * torch.randn((size, longest, 1), generator=generator)
    else:
        shape = (size, longest, 3 * SIDE * SIDE)
        frames = torch.randint(0, 256, shape, generator=generator).to(torch.uint8)
    mask = torch.arange(longest) < count[:, None]
    frames = frames * (mask if role == "text" else mask[..., None])
    return Utterances(
        index=torch.arange(size),
        weight=torch.ones(size),
        loss_scale=1 / size,
        label=torch.linspace(-1, 1, size),
        frames={role: frames},
        mask={role: mask},
        present={role: mask},
    )


def rows(batch: Utterances, chosen: list[int]) -> Utterances:
    return batch.map(lambda tensor: tensor[chosen])


def longer(batch: Utterances, by: int, junk: int) -> Utterances:
    """The batch with more padding, which holds anything."""
    (role,) = batch.frames
    frames, mask = batch.frames[role], batch.mask[role]
    more = torch.full((len(batch), by, *frames.shape[2:]), junk, dtype=frames.dtype)
    mask = torch.cat([mask, torch.zeros((len(batch), by), dtype=torch.bool)], dim=1)
    frames = {role: torch.cat([frames, more], dim=1)}
    return replace(batch, frames=frames, mask={role: mask}, present={role: mask})


@pytest.mark.parametrize("kind", KINDS)
def test_neither_padding_nor_the_samples_beside_it_change_a_score(
    encoders: dict[str, Path], kind: str
):
    model = model_of(kind, encoders[kind]).eval()
    batch = batch_of(kind)
    with torch.no_grad():
        score = model(batch).score
        padded = model(longer(batch, 1000 if ROLE[kind] == "audio" else 2, junk=3)).score
        shuffled = model(rows(batch, [2, 0, 3, 1])).score
        alone = torch.cat([model(cut(rows(batch, [row]))).score for row in range(4)])
    assert score.std() > 1e-4  # the encoder says something
    torch.testing.assert_close(padded, score, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(shuffled, score[[2, 0, 3, 1]], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone, score, rtol=1e-4, atol=1e-5)


def cut(batch: Utterances) -> Utterances:
    """The batch as long as its longest sample, and one at least."""
    (role,) = batch.mask
    length = max(1, int(batch.mask[role].sum(1).max()))
    frames, mask = batch.frames[role][:, :length], batch.mask[role][:, :length]
    return replace(batch, frames={role: frames}, mask={role: mask}, present={role: mask})


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_belongs_to_samples_and_every_trained_parameter_gets_a_gradient(
    encoders: dict[str, Path], kind: str
):
    model = number_dropouts(model_of(kind, encoders[kind])).train()
    batch = batch_of(kind)
    for module in model.modules():  # so that every dropout counts
        if isinstance(module, SampleDropout):
            module.p = 0.3
    with sample_masks(5, 2, batch.index):
        whole = model(batch).score
    halves = []
    for chosen in ([0, 1], [2, 3]):
        part = rows(batch, chosen)
        with sample_masks(5, 2, part.index):
            halves.append(model(part).score)
    torch.testing.assert_close(torch.cat(halves), whole, rtol=1e-4, atol=1e-5)
    with sample_masks(5, 3, batch.index):
        assert not torch.allclose(model(batch).score, whole)
    whole.square().sum().backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("train", ["none", "top", "lora", "dora"])
def test_what_is_not_trained_is_the_base_and_gets_no_gradient(
    encoders: dict[str, Path], kind: str, train: str
):
    changes = {"train": train, "top_layers": 1, "rank": 2}
    model = model_of(kind, encoders[kind], **changes).train()
    (base,) = bases_of(model).values()
    parameters = dict(model.named_parameters())
    frozen = {name for name, value in parameters.items() if not value.requires_grad}
    assert base.names == frozen
    assert base.source == str(encoders[kind])
    model(batch_of(kind)).score.square().sum().backward()
    for name, value in parameters.items():
        assert (value.grad is None) == (name in frozen), name
    in_encoder = [name for name in parameters if ".backbone." in name and name not in frozen]
    if train == "none":
        assert not in_encoder
    elif train == "top":
        layers = transformer_layers(model)
        assert all(value.requires_grad for value in layers[-1].parameters())
        assert len(layers) == 1 or not any(value.requires_grad for value in layers[0].parameters())
    else:
        assert in_encoder
        assert all("lora_" in name for name in in_encoder)


def test_fresh_matrices_change_nothing_and_trained_ones_do(encoders: dict[str, Path]):
    plain = model_of("decoder", encoders["decoder"]).eval()
    adapted = model_of("decoder", encoders["decoder"], train="lora").eval()
    adapted.predict.load_state_dict(plain.predict.state_dict())
    batch = batch_of("decoder")
    with torch.no_grad():
        torch.testing.assert_close(adapted(batch).score, plain(batch).score)
        for name, value in adapted.named_parameters():
            if "lora_B" in name:
                value.add_(0.5)
        assert not torch.allclose(adapted(batch).score, plain(batch).score)


def test_a_decoder_is_summed_up_by_its_last_true_token(encoders: dict[str, Path]):
    model = model_of("decoder", encoders["decoder"]).eval()
    batch = batch_of("decoder", (4, 2))
    reference = transformers.LlamaModel.from_pretrained(encoders["decoder"]).eval()
    with torch.no_grad():
        hidden, mask = model.text(batch.frames["text"], batch.mask["text"])
        for row, length in enumerate((4, 2)):
            states = reference(batch.frames["text"][row : row + 1, :length]).last_hidden_state
            torch.testing.assert_close(hidden[row, 0], states[0, -1], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(hidden[row, 1 : 1 + length], states[0], rtol=1e-4, atol=1e-5)
    assert mask.tolist() == [[True] * 5, [True] * 3 + [False] * 2]


def test_sound_is_prepared_and_encoded_as_transformers_does_it(encoders: dict[str, Path]):
    sound = (0.1 * np.random.default_rng(0).normal(size=8000)).astype(np.float32)
    for kind in ("wav2vec2", "whisper"):
        folder = encoders[kind]
        encoder = model_of(kind, folder).eval().media_encoders["audio"]
        prepare = transformers.AutoFeatureExtractor.from_pretrained(folder)
        reference = transformers.AutoModel.from_pretrained(folder).eval()
        reference = reference.get_encoder() if kind == "whisper" else reference
        values = prepare(sound, sampling_rate=16000, return_tensors="pt")
        frames = torch.from_numpy(sound)[None, :, None]
        with torch.no_grad():
            wanted = reference(values[prepare.model_input_names[0]]).last_hidden_state
            found, mask = encoder(frames, torch.ones((1, 8000), dtype=torch.bool))
        assert bool(mask.all())
        assert found.shape[1] == encoder.longest(8000)
        torch.testing.assert_close(found, wanted[:, : found.shape[1]], rtol=1e-3, atol=1e-4)


def test_pictures_are_prepared_and_encoded_as_transformers_does_it(encoders: dict[str, Path]):
    folder = encoders["vit"]
    spec = replace(spec_of("vision"), features={"vision": 3 * 32 * 32})
    model = build_model("baseline", options_of("vit", folder), spec).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    prepare = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    values = prepare(images=[pixels], return_tensors="pt", input_data_format="channels_last")
    reference = transformers.AutoModel.from_pretrained(folder).eval()
    frames = torch.from_numpy(pixels.transpose(2, 0, 1).reshape(1, 1, -1).copy())
    with torch.no_grad():
        wanted = reference(values["pixel_values"]).last_hidden_state[:, 0]
        found, _ = model.media_encoders["vision"](frames, torch.ones((1, 1), dtype=torch.bool))
    torch.testing.assert_close(found[:, 0], wanted, rtol=1e-4, atol=1e-5)


def test_dropped_sound_is_silent_before_it_is_encoded(encoders: dict[str, Path]):
    model = model_of("wav2vec2", encoders["wav2vec2"]).eval()
    batch = batch_of("wav2vec2", (3, 2))
    present = batch.mask["audio"] & (torch.arange(5100) % 1000 < 500)
    dropped = replace(batch, present={"audio": present})
    silent = replace(batch, frames={"audio": batch.frames["audio"] * present[..., None]})
    with torch.no_grad():
        torch.testing.assert_close(model(dropped).score, model(silent).score)
        nothing = replace(batch, present={"audio": torch.zeros_like(present)})
        absent = replace(batch, mask={"audio": torch.zeros_like(present)})
        torch.testing.assert_close(model(nothing).score, model(absent).score)


@pytest.mark.parametrize("rule", ["first", "mean", "last", "attention"])
def test_pooling_sees_what_exists_alone(rule: str):
    torch.manual_seed(2)
    pool = Pool(rule, 4)
    hidden, mask = torch.randn(2, 3, 4), torch.tensor([[True, True, False], [False] * 3])
    found = pool(hidden, mask)
    junk = hidden.masked_fill(~mask[..., None], 9.0)
    torch.testing.assert_close(pool(junk, mask)[0], found[0])
    torch.testing.assert_close(pool(hidden[:1, :2], mask[:1, :2])[0], found[0])
    assert not found[1].any()
    by_hand = {
        "first": hidden[0, 0],
        "mean": hidden[0, :2].mean(0),
        "last": hidden[0, 1],
    }
    if rule == "attention":
        weight = (hidden[0, :2] @ pool.query / 2).softmax(0)
        by_hand["attention"] = weight @ hidden[0, :2]
    torch.testing.assert_close(found[0], by_hand[rule])


def test_heights_count_the_layers_above(encoders: dict[str, Path]):
    model = model_of("decoder", encoders["decoder"])
    heights = layer_heights(model)
    named = {name: heights.get(id(value)) for name, value in model.named_parameters()}
    assert named["text.backbone.embed_tokens.weight"] == 2
    assert named["text.backbone.layers.0.mlp.up_proj.weight"] == 1
    assert named["text.backbone.layers.1.mlp.up_proj.weight"] == 0
    assert named["predict.1.weight"] is None


def test_what_does_not_fit_is_refused(encoders: dict[str, Path]):
    wav2vec2, vit = encoders["wav2vec2"], encoders["vit"]
    with pytest.raises(ValueError, match=r"top_layers=9, and the encoder has 1 layers"):
        model_of("vit", vit, train="top", top_layers=9)
    with pytest.raises(ValueError, match=r"audio.targets=q_prjo: .*did you mean 'q_proj'"):
        model_of("wav2vec2", wav2vec2, train="lora", targets=("q_prjo",))
    mixed = with_sound_preparation(vit, wav2vec2)
    with pytest.raises(ValueError, match="vit is no encoder of sound"):
        model_of("wav2vec2", mixed)
    features = replace(spec_of("audio"), media={}, features={"audio": 5})
    with pytest.raises(ValueError, match=r"the data hold features of width 5; .*--audio raw"):
        build_model("baseline", options_of("wav2vec2", wav2vec2), features)
    without = MODELS["baseline"].Config(modalities=("audio",))
    with pytest.raises(ValueError, match=r"the data hold audio as sound, .*options.audio.source"):
        build_model("baseline", without, spec_of("audio"))
    whisper = options_of("whisper", encoders["whisper"])
    long = replace(spec_of("audio"), max_length={"audio": 480_001})
    with pytest.raises(ValueError, match=r"hears 480000 samples .* have 480001"):
        build_model("baseline", whisper, long)
    idle = InputConfig(audio=EncoderConfig(train="lora"))
    words = MODELS["baseline"].Config(modalities=("text",), inputs=idle)
    with pytest.raises(ValueError, match="options.audio are for an encoder, and its source is fe"):
        build_model("baseline", words, spec_of("text"))
    for text, said in (
        (TextConfig(source="small", train="lora"), "train=lora is for an encoder that others"),
        (TextConfig(source="features", pool="mean"), "pool=mean is for an encoder"),
    ):
        options = MODELS["baseline"].Config(modalities=("text",), text=text)
        data = replace(spec_of("text"), features={"text": 5 * (text.source == "features")})
        with pytest.raises(ValueError, match=said):
            build_model("baseline", options, data)
    with pytest.raises(ValueError, match="frozen=true trains nothing"):
        model_of("bert", encoders["bert"], frozen=True, train="lora")


def with_sound_preparation(folder: Path, other: Path) -> Path:
    """A ViT beside the preparation of sound."""
    mixed = folder.parent / "mixed"
    mixed.mkdir(exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        (mixed / name).write_bytes((folder / name).read_bytes())
    preparation = (other / "preprocessor_config.json").read_bytes()
    (mixed / "preprocessor_config.json").write_bytes(preparation)
    return mixed
