"""The vocabulary of a DeepSpeed JSON: which keys exist, and which of them this engine refuses, and why.

DeepSpeed ignores an unknown top-level key without a word; here it is an error. The names are those of
DeepSpeed 0.19 (a test compares them with the installed one).
"""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


TOP_KEYS = _words(
    """
    activation_checkpointing aio autotuning bf16 bfloat16 checkpoint comet comms_logger communication_data_type
    compile csv_monitor curriculum_learning data_efficiency data_parallel_size data_types dataloader_drop_last
    datastates_ckpt disable_allgather disable_python_gc dump_state expert_parallel flops_profiler fp16
    gradient_accumulation_steps gradient_allreduce_op gradient_clipping gradient_predivide_factor hybrid_engine
    log_level managed_gradient_accumulation memory_breakdown optimizer pipeline prescale_gradients scheduler
    seq_parallel_communication_data_type sequence_parallel_size steps_per_print tensor_parallel tensorboard timers
    torch_autocast train_batch_size train_micro_batch_size_per_gpu use_data_before_expert_parallelism
    vocabulary_size wall_clock_breakdown wandb weight_quantization zero_allow_untested_optimizer
    zero_force_ds_cpu_optimizer zero_optimization
    """
)

ZERO_KEYS = _words(
    """
    allgather_bucket_size allgather_partitions compute_grad_norm contiguous_gradients cpu_offload
    cpu_offload_param cpu_offload_use_pin_memory elastic_checkpoint enable_sanity_checks
    ignore_unused_parameters leaf_module legacy_stage1 load_from_fp32_weights log_trace_cache_warnings
    memory_efficient_linear offload_optimizer offload_param overlap_comm override_module_apply
    parameter_alignment pipeline_loading_checkpoint reduce_bucket_size reduce_scatter round_robin_gradients
    save_muon_momentum_buffer_in_memory stage stage3_allgather_sequential
    stage3_gather_16bit_weights_on_model_save stage3_gather_fp16_weights_on_model_save
    stage3_max_live_parameters stage3_max_reuse_distance stage3_model_persistence_threshold
    stage3_module_granularity_threshold stage3_param_persistence_threshold stage3_prefetch_bucket_size
    stage3_use_all_reduce_for_fetch_params sub_group_size use_multi_rank_bucket_allreduce zenflow
    zero_hpz_partition_size zero_quantized_gradients zero_quantized_nontrainable_weights zero_quantized_weights
    """
)

OFFLOAD_OPTIMIZER_KEYS = _words(
    """
    buffer_count cpuadam_cores_perc device fast_init nvme_path pin_memory pipeline_read pipeline_write ratio
    super_offload
    """
)

OFFLOAD_PARAM_KEYS = _words("buffer_count buffer_size device max_in_cpu nvme_path pin_memory")

FP16_KEYS = _words(
    """
    auto_cast consecutive_hysteresis enabled fp16_master_weights_and_grads hysteresis initial_scale_power
    loss_scale loss_scale_window min_loss_scale
    """
)

BF16_KEYS = _words(
    """
    bf16_master_weights_and_grads bf16_optimizer_states check_grad_overflow enabled immediate_grad_update
    """
)

# Dotted path of a block -> the keys it can have; "" is the file itself. Other blocks are left to DeepSpeed.
BLOCKS: dict[str, frozenset[str]] = {
    "": TOP_KEYS,
    "zero_optimization": ZERO_KEYS,
    "zero_optimization.offload_optimizer": OFFLOAD_OPTIMIZER_KEYS,
    "zero_optimization.offload_param": OFFLOAD_PARAM_KEYS,
    "fp16": FP16_KEYS,
    "bf16": BF16_KEYS,
}

_TWO_ENGINES = "It keeps state that is shared by all engines of a process, and here there are two"
_OWN_LOGS = "Metrics are logged by this engine (recipe: logging); " + _TWO_ENGINES.lower()
_OWN_COUNTS = "Gradients are summed over ranks here, and every loss is divided by global counts beforehand"
_OWN_PRECISION = "Precision is said once, in the fp16 or bf16 block"
_OWN_CHECKPOINTS = "Checkpoints are committed by this engine, complete or not at all"
_OTHER_PARALLELISM = "Only data parallelism is supported"
_DATA = "The order of examples belongs to the recipe (data)"

REFUSED: dict[str, str] = {
    "wandb": _OWN_LOGS,
    "tensorboard": _OWN_LOGS,
    "csv_monitor": _OWN_LOGS,
    "comet": _OWN_LOGS,
    "flops_profiler": _TWO_ENGINES,
    "comms_logger": _TWO_ENGINES,
    "autotuning": "It would search for batch sizes, and these belong to the recipe (batch)",
    "activation_checkpointing": "The recipe owns it (student.activation_checkpointing)",
    "bfloat16": "The block is called bf16",
    "checkpoint": _OWN_CHECKPOINTS,
    "datastates_ckpt": _OWN_CHECKPOINTS,
    "curriculum_learning": _DATA,
    "data_efficiency": _DATA,
    "dataloader_drop_last": _DATA,
    "managed_gradient_accumulation": "The training loop says when a step is complete",
    "prescale_gradients": _OWN_COUNTS,
    "gradient_predivide_factor": _OWN_COUNTS,
    "torch_autocast": _OWN_PRECISION,
    "data_types.param_dtype": _OWN_PRECISION,
    "weight_quantization": _OWN_PRECISION,
    "scheduler": "The recipe owns the learning rate's course (schedule)",
    "compile.deepcompile": "DeepCompile cannot sum gradients over ranks",
    "hybrid_engine": "It switches one engine between training and inference; here there are two engines",
    "pipeline": _OTHER_PARALLELISM,
    "tensor_parallel": _OTHER_PARALLELISM,
    "expert_parallel": _OTHER_PARALLELISM,
    "sequence_parallel_size": _OTHER_PARALLELISM,
    "data_parallel_size": "It is the number of ranks",
    "use_data_before_expert_parallelism": _OTHER_PARALLELISM,
    "zero_optimization.zenflow": "ZenFlow cannot sum gradients over ranks",
    "zero_optimization.zero_hpz_partition_size": _TWO_ENGINES,
    "zero_optimization.zero_quantized_weights": _TWO_ENGINES,
    "zero_optimization.zero_quantized_nontrainable_weights": _TWO_ENGINES,
    "zero_optimization.zero_quantized_gradients": _TWO_ENGINES,
    "zero_optimization.cpu_offload": "The block is called zero_optimization.offload_optimizer",
    "zero_optimization.cpu_offload_param": "The block is called zero_optimization.offload_param",
    "zero_optimization.cpu_offload_use_pin_memory": "It is called offload_optimizer.pin_memory",
}

# Refused on top of these where they make no sense for one of the two engines.
REFUSED_FOR_STUDENT: dict[str, str] = {
    "zero_optimization.offload_param": "Parameters are offloaded under ZeRO-3 only, and a student runs under ZeRO-2",
    "zero_optimization.compute_grad_norm": "The gradient norm is logged and clipped by",
}

_NOT_TRAINED = "The teacher is never trained"

REFUSED_FOR_TEACHER: dict[str, str] = {
    "optimizer": _NOT_TRAINED,
    "gradient_clipping": _NOT_TRAINED,
    "gradient_accumulation_steps": _NOT_TRAINED,
    "gradient_allreduce_op": _NOT_TRAINED,
    "train_batch_size": "The teacher reads the student's batches (recipe: batch)",
    "train_micro_batch_size_per_gpu": "The teacher reads the student's batches (recipe: batch)",
    "zero_allow_untested_optimizer": _NOT_TRAINED,
    "zero_force_ds_cpu_optimizer": _NOT_TRAINED,
    "zero_optimization.offload_optimizer": _NOT_TRAINED,
}
