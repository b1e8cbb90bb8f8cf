"""Models with fewer rows: what they say of kept tokens is what the whole model says, renormalised."""

import json

import pytest
import tiny_families
import tiny_speaker
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSeq2SeqLM, GenerationConfig

from distill_engine.families.whisper import FAMILY
from distill_engine.models.loading import Checkpoint
from distill_engine.models.trimmed import named_ids, write_trimmed
from distill_engine.models.weight_files import WeightsError

WORDS = {*range(5, 40, 2)}


def trimmed(name: str, folder, **saved):
    """The whole model, the trimmed one, and the kept ids."""
    whole = tiny_families.model(name)
    whole.save_pretrained(folder / "whole", **saved)
    kept = sorted(named_ids(folder / "whole") | WORDS)
    (folder / "small").mkdir()
    write_trimmed(folder / "whole", folder / "small", kept)
    return whole, Checkpoint(folder / "small").load(torch.float32).eval(), kept


@pytest.mark.parametrize("name", [one for one in tiny_families.PUBLISHED if "whisper" not in one])  # it reads no ids
def test_logits_are_the_whole_models_of_kept_tokens(name, tmp_path):
    whole, small, kept = trimmed(name, tmp_path)
    assert small.config.vocab_size == len(kept) < whole.config.vocab_size
    assert sum(one.numel() for one in small.parameters()) < sum(one.numel() for one in whole.parameters())
    torch.manual_seed(0)
    old, new = torch.tensor(kept), torch.randint(0, len(kept), (2, 6))
    mask = torch.ones_like(new)
    with torch.no_grad():
        wide = whole(input_ids=old[new], attention_mask=mask, decoder_input_ids=old[new.flip(1)]).logits
        narrow = small(input_ids=new, attention_mask=mask, decoder_input_ids=new.flip(1)).logits
    torch.testing.assert_close(narrow, wide[..., old], rtol=1e-5, atol=1e-5)
    for key in ("pad_token_id", "eos_token_id", "decoder_start_token_id", "forced_bos_token_id"):
        one = getattr(whole.generation_config, key, None)
        assert getattr(small.generation_config, key, None) == (None if one is None else kept.index(one)), key


def test_it_replies_what_the_whole_model_replies_without_the_dropped_tokens(tmp_path):
    whole, small, kept = trimmed("nllb-200-distilled-600M", tmp_path)
    dropped = sorted(set(range(tiny_families.VOCABULARY)) - set(kept))
    new = torch.tensor([[kept.index(one) for one in (7, 11, 23, 2)], [kept.index(one) for one in (9, 5, 13, 2)]])
    said = small.generate(input_ids=new, attention_mask=torch.ones_like(new))
    old = torch.tensor(kept)
    wide = whole.generate(input_ids=old[new], attention_mask=torch.ones_like(new), suppress_tokens=dropped)
    assert old[said].tolist() == wide.tolist() and said.shape[1] > 3


def test_files_without_a_table_are_links(tmp_path):
    _, small, _ = trimmed("bart-large-cnn", tmp_path, max_shard_size="8KB")
    files = sorted((tmp_path / "small").glob("*.safetensors"))
    links = [file for file in files if file.is_symlink()]
    assert len(files) == len(list((tmp_path / "whole").glob("*.safetensors"))) > 2 and links
    assert all(file.resolve().parent == tmp_path / "whole" for file in links)
    assert sum(len(load_file(file)) for file in files) >= len(dict(small.named_parameters()))


def test_vocabularies_of_two_sizes_are_refused(tmp_path):
    name = "opus-mt with two vocabularies"
    config = tiny_families.config(name, decoder_vocab_size=48)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"decoder_vocab_size is 48.*of two sizes cannot be trimmed"):
        write_trimmed(tmp_path, tmp_path, [0, 1, 2])


def test_what_forbids_a_dropped_token_goes_with_it(tmp_path):
    tiny_families.save("opus-mt-en-de", tmp_path / "whole")
    file = tmp_path / "whole" / "generation_config.json"
    settings = json.loads(file.read_text()) | {"bad_words_ids": [[63], [6, 7], [7, 9]], "suppress_tokens": [6, 9]}
    file.write_text(json.dumps(settings))
    (tmp_path / "small").mkdir()
    write_trimmed(tmp_path / "whole", tmp_path / "small", [0, 1, 2, 7, 9, 63])
    made = json.loads((tmp_path / "small" / "generation_config.json").read_text())
    assert made["bad_words_ids"] == [[5], [3, 4]] and made["suppress_tokens"] == [4]
    config = AutoConfig.from_pretrained(tmp_path / "small")
    assert (config.pad_token_id, config.eos_token_id, config.decoder_start_token_id) == (5, 0, 5)


def test_a_prompt_is_the_same_tokens_by_their_new_ids(tmp_path):
    """Languages and tasks stand in tables of the generation settings, or at forced places, one of them open."""
    whole = tiny_speaker.save(tmp_path / "whole", "de")
    file = whole / "generation_config.json"
    settings = json.loads(file.read_text())
    task = settings["task_to_id"]["transcribe"]
    kept = sorted(named_ids(whole) | {3, 5})
    assert set(settings["lang_to_id"].values()) < set(kept)
    family = FAMILY
    for number, said in enumerate((settings, {**settings, "language": None, "task": None,
                                              "forced_decoder_ids": [[1, None], [2, task]]})):  # fmt: skip
        file.write_text(json.dumps(said))
        small = tmp_path / f"small{number}"
        small.mkdir()
        write_trimmed(whole, small, kept)
        old, new = (family.prompt(GenerationConfig.from_pretrained(folder).to_dict()) for folder in (whole, small))
        assert len(old) == 3 and [None if one is None else kept[one] for one in new] == list(old)
