"""Tiny random encoders and recognisers of ``transformers``, saved to a folder."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel


def save_wav2vec2(folder: Path) -> Path:
    """An encoder of sound, 16 wide, a frame per 320 samples."""
    torch.manual_seed(1)
    transformers.Wav2Vec2Model(wav2vec2_config()).save_pretrained(folder)
    sound_preparation().save_pretrained(folder)
    return folder


def wav2vec2_config(**more) -> transformers.Wav2Vec2Config:
    return transformers.Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        **more,
    )


def sound_preparation() -> transformers.Wav2Vec2FeatureExtractor:
    return transformers.Wav2Vec2FeatureExtractor(
        feature_size=1, sampling_rate=16000, padding_value=0.0, do_normalize=True
    )


def save_speller(folder: Path) -> Path:
    """A recogniser that spells letters and blanks between words, at random."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = ["<pad>", "<unk>", "|", *"abc"]
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    transformers.Wav2Vec2CTCTokenizer(
        folder / "vocab.json", unk_token="<unk>", pad_token="<pad>", word_delimiter_token="|"
    ).save_pretrained(folder)
    torch.manual_seed(3)
    config = wav2vec2_config(vocab_size=len(letters), pad_token_id=0)
    transformers.Wav2Vec2ForCTC(config).save_pretrained(folder)
    sound_preparation().save_pretrained(folder)
    return folder


def whisper_config() -> transformers.WhisperConfig:
    return transformers.WhisperConfig(
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_mel_bins=80,
    )


def save_whisper(folder: Path) -> Path:
    """An encoder of Whisper's kind: spectra of 30 seconds, 50 frames in a second."""
    torch.manual_seed(2)
    transformers.WhisperModel(whisper_config()).save_pretrained(folder)
    transformers.WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
    return folder


def save_vit(folder: Path) -> Path:
    """An encoder of images, 12 wide."""
    torch.manual_seed(4)
    config = transformers.ViTConfig(
        hidden_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        image_size=32,
        patch_size=16,
    )
    transformers.ViTModel(config).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def save_writer(folder: Path) -> Path:
    """A recogniser of Whisper's kind that writes letters at random, with word times."""
    letters = sorted(ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    tokenizer = transformers.WhisperTokenizer(vocab=vocabulary, merges=[])
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|transcribe|>"]
    special += ["<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    special += [f"<|{0.02 * step:.2f}|>" for step in range(1501)]
    tokenizer.add_tokens(special, special_tokens=True)
    tokenizer.save_pretrained(folder)
    number_of = tokenizer.convert_tokens_to_ids
    torch.manual_seed(5)
    config = whisper_config()
    config.vocab_size = len(tokenizer)
    config.max_target_positions = 24
    config.decoder_start_token_id = number_of("<|startoftranscript|>")
    config.eos_token_id = config.pad_token_id = config.bos_token_id = number_of("<|endoftext|>")
    model = transformers.WhisperForConditionalGeneration(config)
    generation = model.generation_config
    generation._from_model_config = False  # else it is made anew when it is loaded
    generation.alignment_heads = [[0, 0]]
    generation.no_timestamps_token_id = number_of("<|notimestamps|>")
    generation.is_multilingual = False
    generation.max_length = 20
    generation.suppress_tokens = []
    generation.begin_suppress_tokens = []
    model.save_pretrained(folder)
    transformers.WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
    return folder
