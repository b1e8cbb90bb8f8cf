"""A tiny Whisper that hears a second of sound, with a tokenizer that knows two languages, as the published ones.

Tests get this module by its name.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from tones import CHANNELS, FRAMES, save_extractor
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration, WhisperTokenizer

PROMPTS = ("<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>", "<|notimestamps|>")
END = "<|endoftext|>"
POSITIONS = 32


def save(folder: Path, language: str | None = "en", seed: int = 0, decoder_layers: int = 2) -> Path:
    """A random teacher as the Hub has it: weights, tokenizer, feature extractor, generation settings."""
    backend = ByteLevelBPETokenizer()
    backend.train_from_iterator([" low middle high tone"] * 3, vocab_size=280, show_progress=False)
    backend.save_model(str(folder.parent))
    tokenizer = WhisperTokenizer(str(folder.parent / "vocab.json"), str(folder.parent / "merges.txt"), pad_token=END)
    tokenizer.add_special_tokens({"additional_special_tokens": list(PROMPTS)})
    number = {token: tokenizer.convert_tokens_to_ids(token) for token in (END, *PROMPTS)}
    end, start = number[END], number["<|startoftranscript|>"]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = WhisperForConditionalGeneration(
            WhisperConfig(
                vocab_size=len(tokenizer), d_model=16, encoder_layers=1, decoder_layers=decoder_layers,
                encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24,
                num_mel_bins=CHANNELS,
                max_source_positions=FRAMES // 2, max_target_positions=POSITIONS, pad_token_id=end, bos_token_id=end,
                eos_token_id=end, decoder_start_token_id=start, suppress_tokens=None, begin_suppress_tokens=None,
            )
        )  # fmt: skip
        for value in model.parameters():
            value.add_(0.1 * torch.randn_like(value))
    model.generation_config = GenerationConfig(
        pad_token_id=end, bos_token_id=end, eos_token_id=end, decoder_start_token_id=start, max_length=POSITIONS,
        is_multilingual=True, language=language, task="transcribe", return_timestamps=False,
        lang_to_id={code: number[code] for code in PROMPTS[1:3]},
        task_to_id={"translate": number["<|translate|>"], "transcribe": number["<|transcribe|>"]},
        no_timestamps_token_id=number["<|notimestamps|>"], begin_suppress_tokens=[end],
    )  # fmt: skip
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return save_extractor(folder)
