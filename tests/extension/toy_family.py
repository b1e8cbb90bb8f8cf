"""A model family that the package does not know: BART's network under a name and with a layout of its own."""

from transformers import AutoConfig, AutoModelForSeq2SeqLM, BartConfig, BartForConditionalGeneration

from distill_engine.families.base import BartLike, around
from distill_engine.families.shape import Form
from distill_engine.registry import register


class ToyConfig(BartConfig):
    """As transformers finds it."""

    model_type = "toy_model"


class ToyModel(BartForConditionalGeneration):
    """As transformers finds it."""

    config_class = ToyConfig


class Toy(BartLike):
    """Its decoder starts with PAD."""

    name, meaning = "toy_model", "BART's network, decoding from PAD"
    final_norms = ("model.encoder.layernorm_embedding.", "model.decoder.layernorm_embedding.")
    form = Form(position_rows=2)

    def layout(self, special, history_end_token=False):
        return around(special, context_suffix=(special.end,), decoder_prefix=(special.pad,))


TOY = Toy()
AutoConfig.register("toy_model", ToyConfig)
AutoModelForSeq2SeqLM.register(ToyConfig, ToyModel)
register("families", "toy_model", "toy_family:TOY")
