"""ParlAI's flags of the training loop, the optimizer, the distillation agents and the loggers."""

from __future__ import annotations

from distill_engine.interop.parlai.options.flag import Flag, becomes, has_none

_LAUNCHER = "ranks are started by the launcher, one for each GPU"
_GENERATES = "the metrics that decide are teacher-forced"
_LOGS = "metrics are always written to metrics.jsonl in the run folder"
_CLEARML = "there is no ClearML sink; metrics.jsonl and W&B have every metric"

DISTILLATION: tuple[Flag, ...] = (
    becomes("teacher-model", "text", None, "teacher.path"),
    becomes("task-loss-coeff", "float", 1.0, "losses.weights.task"),
    becomes("encoder-loss-coeff", "float", 0.0, "losses.weights.encoder"),
    becomes("hidden-loss-coeff", "float", 0.0, "losses.weights.hidden"),
    becomes("pred-loss-coeff", "float", 0.0, "losses.weights.prediction"),
    becomes("embedding-loss-coeff", "float", 0.0, "losses.weights.embedding"),
    becomes("self-attn-loss-coeff", "float", 0.0, "losses.weights.self_attention"),
    becomes("enc-dec-attn-loss-coeff", "float", 0.0, "losses.weights.cross_attention"),
    becomes("copy-teacher-weights", "bool", True, "student.init student.copy_final_norms"),
)

LOOP: tuple[Flag, ...] = (
    has_none("evaltask", "text", None, "validation is on the tasks that are trained on", "-et"),
    has_none("final-extra-opt", "text", "", "there is no final evaluation of its own; use `distill evaluate`"),
    becomes("eval-batchsize", "int", None, "validation.per_rank_batch"),
    has_none("eval-dynamic-batching", "text or none", None, "a validation batch is made as a training batch"),
    has_none("num-workers", "int", 0, "batches are made ahead of time without further processes"),
    has_none("display-examples", "bool", False, "examples are not printed while training"),
    becomes("num-epochs", "float", -1.0, "stop.max_epochs", "-eps"),
    becomes("max-train-time", "float", -1.0, "stop.max_seconds", "-ttim"),
    becomes("max-train-steps", "int", -1, "stop.max_steps", "-tstep", "--max-lr-steps"),
    has_none("log-every-n-secs", "float", -1.0, "logging goes by steps: logging.every_steps", "-ltim"),
    becomes("log-every-n-steps", "int", 50, "logging.every_steps", "-lstep"),
    becomes("validation-every-n-secs", "float", -1.0, "validation.every_seconds", "-vtim"),
    becomes("validation-every-n-steps", "int", -1, "validation.every_steps", "-vstep"),
    becomes("save-every-n-secs", "float", -1.0, "checkpoint.every_seconds", "-stim"),
    becomes("save-after-valid", "bool", False, "validation.save_after_validation", "-sval"),
    becomes("validation-every-n-epochs", "float", -1.0, "validation.every_epochs", "-veps"),
    becomes("validation-max-exs", "int", -1, "data.datasets.N.valid_examples", "-vme"),
    has_none("short-final-eval", "bool", False, "there is no final evaluation; use `distill evaluate`"),
    becomes("validation-patience", "int", 10, "validation.patience", "-vp"),
    becomes("validation-metric", "text", "accuracy", "validation.metric", "-vmt"),
    becomes("validation-metric-mode", "text", None, "validation.direction", "-vmm"),
    becomes("validation-cutoff", "float", 1.0, "validation.stop_at", "-vcut"),
    has_none("load-from-checkpoint", "bool", True, "a run folder with a checkpoint always goes on from it", "-lfc"),
    has_none("validation-share-agent", "bool", False, "validation uses the student itself", "-vshare"),
    has_none("metrics", "text", "default", "all metrics are measured; see docs/metrics.md", "-mcs"),
    becomes("aggregate-micro", "bool", False, "validation.average", "-micro"),
    has_none("world-logs", "text", "", "conversations are not logged"),
    has_none("save-format", "text", "conversations", "conversations are not logged"),
    has_none("log-keep-fields", "text", "all", "conversations are not logged"),
    becomes("seed", "int", None, "seed"),
)

OPTIMIZER: tuple[Flag, ...] = (
    becomes("optimizer", "text", "sgd", "optimizer.name optimizer.amsgrad", "-opt"),
    becomes("learningrate", "float", 1.0, "optimizer.learning_rate", "-lr"),
    becomes("gradient-clip", "float", 0.1, "optimizer.clip_norm", "-clip"),
    becomes("adam-eps", "float", 1e-8, "optimizer.eps"),
    has_none("adafactor-eps", "floats", [1e-30, 1e-3], "there is no adafactor"),
    becomes("momentum", "float", 0.0, "optimizer.momentum", "-mom"),
    has_none("nesterov", "bool", True, "sgd has plain momentum"),
    has_none("nus", "floats", [0.7], "there is no quasi-hyperbolic optimizer", "-nu"),
    becomes("betas", "floats", [0.9, 0.999], "optimizer.betas", "-beta"),
    becomes("weight-decay", "float", None, "optimizer.weight_decay", "-wdecay"),
    becomes("lr-scheduler", "text", "reduceonplateau", "schedule.name"),
    becomes("lr-scheduler-patience", "int", 3, "schedule.patience"),
    becomes("lr-scheduler-decay", "float", 0.5, "schedule.decay"),
    has_none("invsqrt-lr-decay-gamma", "int", -1, "there is no inverse square root schedule"),
    becomes("warmup-updates", "int", -1, "schedule.warmup_steps"),
    becomes("warmup-rate", "float", 1e-4, "schedule.warmup_start"),
    becomes("update-freq", "int", 1, "batch.accumulation_steps"),
    becomes(
        "fp16",
        "bool",
        False,
        "batch.pad_to_multiple_of",
        differs="precision itself belongs to the DeepSpeed JSON: --ds_config ds_configs/zero2.json is fp16",
    ),
    has_none("fp16-impl", "text", "safe", "DeepSpeed always keeps fp32 master weights, as `safe` does"),
    has_none("force-fp16-tokens", "bool", False, "the vocabulary is the teacher's own, never padded"),
    has_none("gpu", "int", -1, _LAUNCHER, "-gpu"),
    has_none("no-cuda", "switch", False, _LAUNCHER),
    has_none("model-parallel", "bool", False, "ZeRO splits weights over ranks instead of layers over GPUs"),
    has_none("data-parallel", "bool", False, _LAUNCHER),
    has_none("distributed-world-size", "int", None, _LAUNCHER),
    has_none("ddp-backend", "text", "ddp", "ZeRO stages are in the DeepSpeed JSON: --ds_config"),
    has_none("port", "int", None, _LAUNCHER),
)

LOGGERS: tuple[Flag, ...] = (
    has_none("tensorboard-log", "bool", False, _LOGS + " and to W&B; there is no TensorBoard sink", "-tblog"),
    has_none("tensorboard-logdir", "text", None, "there is no TensorBoard sink", "-tblogdir"),
    becomes("wandb-log", "bool", False, "logging.wandb.mode", "-wblog"),
    has_none("wandb-name", "text", None, "the W&B run has the recipe's name"),
    becomes("wandb-project", "text", None, "logging.wandb.project"),
    becomes("wandb-entity", "text", None, "logging.wandb.entity"),
    has_none("wandb-log-model", "bool", False, "the student stays in the run folder"),
    has_none("clearml-log", "bool", False, _CLEARML, "-clearmllog"),
    has_none("clearml-project-name", "text", "ParlAI", _CLEARML, "-clearmlproject"),
    has_none("clearml-task-name", "text", "Default Task", _CLEARML, "-clearmltask"),
)

GENERATION: tuple[Flag, ...] = (
    has_none("beam-size", "int", 1, _GENERATES),
    has_none("beam-min-length", "int", 1, _GENERATES),
    has_none("beam-context-block-ngram", "int", -1, _GENERATES),
    has_none("beam-block-ngram", "int", -1, _GENERATES),
    has_none("beam-block-full-context", "bool", True, _GENERATES),
    has_none("beam-length-penalty", "float", 0.65, _GENERATES),
    has_none("skip-generation", "bool", False, _GENERATES),
    has_none("inference", "text", "greedy", _GENERATES),
    has_none("topk", "int", 10, _GENERATES),
    has_none("topp", "float", 0.9, _GENERATES),
    has_none("beam-delay", "int", 30, _GENERATES),
    has_none("lambda-decay", "float", 0.9, _GENERATES),
    has_none("omega-bound", "float", 0.3, _GENERATES),
    has_none("p-reset", "bool", True, _GENERATES),
    has_none("beam-block-list-filename", "text", None, _GENERATES),
    has_none("temperature", "float", 1.0, _GENERATES + "; losses.temperature is another thing"),
    has_none("compute-tokenized-bleu", "bool", False, _GENERATES),
    has_none("gpu-beam-blocking", "bool", False, _GENERATES),
    has_none("verbose-topk", "int", -1, _GENERATES),
)
