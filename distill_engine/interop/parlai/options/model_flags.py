"""ParlAI's flags of the model, the dictionary, the tasks and the program itself."""

from __future__ import annotations

from distill_engine.interop.parlai.options.flag import Flag, becomes, has_none

_TEACHERS = "it is the teacher's: a student has its teacher's architecture"
_TOKENIZER = "it is part of the tokenizer, which is the teacher's (data.tokenizer)"
_NOT_BUILT = "dictionaries are not built here; data.tokenizer names one"
_SIDE_FIELD = "it fills a field that generator models never read"
_IMAGES = "there are no image tasks"
_HISTORY = "history is always the whole episode's texts and gold replies, oldest first"

MAIN: tuple[Flag, ...] = (
    has_none("init-opt", "text", None, "nothing is inherited from a file: its values are in the recipe", "-o"),
    has_none("allow-missing-init-opts", "bool", False, "unknown keys are errors in a recipe"),
    becomes("task", "text", None, "data.datasets", "-t"),
    has_none("download-path", "text", None, "`distill data fetch` has its own --root"),
    has_none("loglevel", "text", "info", "there are no log levels"),
    has_none("datatype", "text", "train", "training examples are always shuffled anew in each pass", "-dt"),
    has_none("image-mode", "text", "raw", _IMAGES),
    has_none("hide-labels", "bool", False, "validation needs labels"),
    becomes("multitask-weights", "weights", [1.0], "data.datasets.N.weight data.weights_mean", "-mtw"),
    becomes("batchsize", "int", 1, "batch.per_rank", "-bs"),
    becomes("dynamic-batching", "text or none", None, "batch.max_tokens", "-dynb"),
    has_none("verbose", "switch", False, "there are no log levels", "-v"),
    has_none("is-debug", "switch", False, "there is no debug mode", "--debug"),
    becomes("datapath", "text", None, "data.root", "-dp"),
    becomes("model", "text", None, "student.family student.init student.projections", "-m"),
    becomes("model-file", "text", None, "name", "-mf", differs="the run folder is --run-dir, by default runs/<name>"),
    becomes("init-model", "text or none", None, "teacher.path student.init", "-im"),
    has_none("dict-class", "text", "parlai.core.dict:DictionaryAgent", _TOKENIZER),
    has_none("interactive-mode", "bool", False, "training is not interactive", "-i"),
)

ARCHITECTURE: tuple[Flag, ...] = (
    becomes("embedding-size", "int", 300, "student.width", "-esz"),
    becomes("n-layers", "int", 2, "student.encoder_layers student.decoder_layers", "-nl"),
    becomes("ffn-size", "int", 300, "student.ffn_width", "-hid"),
    becomes("dropout", "float", 0.0, "student.dropout"),
    becomes("attention-dropout", "float", 0.0, "student.attention_dropout"),
    has_none("relu-dropout", "float", 0.0, _TEACHERS),
    becomes("n-heads", "int", 2, "student.heads"),
    becomes("learn-positional-embeddings", "bool", False, "student.train_position_tables"),
    has_none("embeddings-scale", "bool", True, _TEACHERS),
    becomes("n-positions", "int", None, "student.positions"),
    has_none("n-segments", "int", 0, "Blenderbot and BART have no segment embeddings"),
    becomes("variant", "text", "aiayn", "student.family"),
    has_none("activation", "text", "relu", _TEACHERS),
    has_none("output-scaling", "float", 1.0, "Blenderbot and BART do not scale the encoder's output"),
    has_none("share-word-embeddings", "bool", True, "embeddings and output are always one table, as in ParlAI"),
    becomes("n-encoder-layers", "int", -1, "student.encoder_layers", "-nel"),
    becomes("n-decoder-layers", "int", -1, "student.decoder_layers", "-ndl"),
    becomes("checkpoint-activations", "bool", False, "student.activation_checkpointing"),
    has_none("init-fairseq-model", "text", None, "fairseq checkpoints are not read"),
    has_none("output-conversion-path", "text", None, "fairseq checkpoints are not read"),
    has_none("embedding-type", "text", "random", "embeddings start from the teacher's or at random", "-emb"),
    has_none("embedding-projection", "text", "random", "there are no pretrained word vectors", "-embp"),
    has_none("rank-candidates", "bool", False, "nothing ranks candidates", "-rc"),
)

TEXT: tuple[Flag, ...] = (
    becomes("truncate", "int", -1, "data.context_tokens data.label_tokens", "-tr"),
    becomes("text-truncate", "int", None, "data.context_tokens"),
    becomes("label-truncate", "int", None, "data.label_tokens"),
    has_none("history-reversed", "bool", False, _HISTORY),
    has_none("history-size", "int", -1, _HISTORY + ", cut to data.context_tokens", "-histsz"),
    has_none("person-tokens", "bool", False, "speakers are not marked", "-pt"),
    has_none("split-lines", "bool", False, "a text with several lines is one entry of the history"),
    has_none("use-reply", "text", "label", _HISTORY),
    has_none("add-p1-after-newln", "bool", False, "speakers are not marked"),
    becomes("delimiter", "text", "\n", "data.delimiter"),
    becomes("history-add-global-end-token", "text or none", None, "data.history_end_token"),
    has_none("special-tok-lst", "text", None, _TOKENIZER),
    becomes("dict-file", "text", None, "data.tokenizer", "-df", differs="null: the teacher's, which has the same ids"),
    has_none("dict-initpath", "text", None, _NOT_BUILT),
    has_none("dict-language", "text", "english", _NOT_BUILT),
    has_none("dict-max-ngram-size", "int", -1, _NOT_BUILT),
    has_none("dict-minfreq", "int", 0, _NOT_BUILT),
    has_none("dict-maxtokens", "int", -1, _NOT_BUILT),
    has_none("dict-nulltoken", "text", "__null__", _TOKENIZER),
    has_none("dict-starttoken", "text", "__start__", _TOKENIZER),
    has_none("dict-endtoken", "text", "__end__", _TOKENIZER),
    has_none("dict-unktoken", "text", "__unk__", _TOKENIZER),
    has_none("dict-tokenizer", "text", "re", _TOKENIZER, "-tok"),
    has_none("dict-lower", "bool", False, _TOKENIZER),
    has_none("dict-textfields", "text", "text,labels", _NOT_BUILT),
    has_none("dict-maxexs", "int", -1, _NOT_BUILT),
    has_none("dict-include-valid", "bool", False, _NOT_BUILT),
    has_none("dict-include-test", "bool", False, _NOT_BUILT),
    has_none("bpe-debug", "switch", False, _TOKENIZER),
    has_none("bpe-vocab", "text", None, _TOKENIZER),
    has_none("bpe-merge", "text", None, _TOKENIZER),
    has_none("bpe-add-prefix-space", "bool", None, _TOKENIZER),
    has_none("bpe-dropout", "float", None, "a text has the same tokens every time"),
)

TASKS: tuple[Flag, ...] = (
    has_none("label-type", "text", "response", "wizard_of_wikipedia's label is the wizard's reply"),
    has_none("include-knowledge", "bool", True, _SIDE_FIELD),
    has_none("include-checked-sentence", "bool", True, _SIDE_FIELD),
    has_none("include-knowledge-separator", "bool", False, _SIDE_FIELD),
    has_none("chosen-topic-delimiter", "text", "\n", "topic and text are joined by a line break"),
    has_none("num-topics", "int", 5, "it is for interactive use"),
    has_none("add-missing-turns", "text", "none", "turns are ParlAI's default ones"),
    has_none("your-persona-first", "bool", True, "the own persona is always first"),
    has_none("max-num-turns", "int", -1, "episodes have all their turns"),
    has_none("train-experiencer-only", "bool", False, "both speakers are learnt in training, as by default"),
    has_none("teacher-seed", "float", None, "the order of examples follows from seed"),
    has_none("mutators", "text", None, "texts are not changed after reading; write the changed task as a file", "-mut"),
    becomes(
        "fromfile-datapath", "text", None, "data.datasets.N.train data.datasets.N.valid data.datasets.N.test", "-ffdp"
    ),
    becomes("fromfile-datatype-extension", "bool", False, "data.datasets.N.train data.datasets.N.valid", "-ffdt"),
    becomes(
        "jsonfile-datapath", "text", None, "data.datasets.N.train data.datasets.N.valid data.datasets.N.test", "-jfdp"
    ),
    becomes("jsonfile-datatype-extension", "bool", False, "data.datasets.N.train data.datasets.N.valid", "-jfdt"),
    becomes("label-turns", "text", "secondspeaker", "data.datasets.N.label_turns"),
)
