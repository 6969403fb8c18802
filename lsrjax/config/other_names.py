"""Other trainers' names of our fields, and the field nearest to a name."""

from collections.abc import Iterable
from typing import Any

from lsrjax.config.moved import place
from lsrjax.errors import nearest

# Names in Hugging Face's TrainingArguments, sentence-transformers, Tevatron,
# FlagEmbedding, ColBERT, levanter and big_vision, without their groups.
_ELSEWHERE = {
    "optim.lr": "learning_rate lr base_lr peak_lr init_lr",
    "optim.schedule": "lr_scheduler_type lr_scheduler lr_schedule scheduler"
    " scheduler_type",
    "optim.warmup_steps": "warmup num_warmup_steps lr_warmup_steps warmup_steps",
    "optim.warmup_fraction": "warmup_ratio warmup_proportion warmup_percent",
    "optim.optimizer": "optim optimizer_name optimizer_type opt",
    "optim.groups": "param_groups parameter_groups lr_mult layer_lr"
    " learning_rate_mapping",
    "optim.weight_decay": "wd decay adam_weight_decay l2",
    "optim.clip_norm": "max_grad_norm grad_clip grad_clip_norm clip_grad_norm"
    " gradient_clip gradient_clip_val clip_value clip",
    "optim.freeze": "frozen freeze_layers freeze_encoder frozen_parameters",
    "batch_size": "train_batch_size per_device_train_batch_size global_batch_size bs"
    " bsize batch",
    "memory.encode_chunk": "micro_batch_size mini_batch_size microbatch gc_chunk_size"
    " sub_batch_size per_device_parallelism",
    "memory.remat": "gradient_checkpointing activation_checkpointing remat_policy",
    "steps": "max_steps num_steps total_steps train_steps num_train_steps maxsteps"
    " training_steps num_training_steps n_steps",
    "epochs": "num_train_epochs num_epochs max_epochs total_epochs n_epochs epoch",
    "seed": "random_seed rng_seed data_seed random_state",
    "checkpoint.every": "save_steps save_every save_interval save_freq ckpt_steps"
    " checkpoint_steps checkpoint_every steps_per_checkpoint save_strategy",
    "checkpoint.keep": "save_total_limit max_to_keep keep_checkpoints keep_ckpt"
    " keep_last",
    "checkpoint.push": "push_to_hub hub_model_id push_to_hub_model_id hub_repo",
    "checkpoint.push_when": "hub_strategy",
    "dev.patience": "early_stopping_patience early_stopping",
    "dev.every": "eval_steps eval_every eval_interval eval_freq evaluation_steps"
    " val_every validate_every val_check_interval eval_strategy",
    "dev.metric": "metric_for_best_model eval_metric best_metric",
    "dev.queries": "max_eval_samples eval_samples",
    "log.every": "logging_steps log_steps log_every log_interval log_freq"
    " logging_interval log_every_n_steps log_training_steps",
    "watchdog.seconds": "timeout ddp_timeout",
    "model.dtype": "bf16 fp16 precision mixed_precision torch_dtype compute_dtype amp",
    "model.dropout": "dropout_rate hidden_dropout_prob attention_dropout"
    " attention_probs_dropout_prob hidden_dropout",
    "model.num_layers": "num_hidden_layers n_layers layers depth",
    "model.num_heads": "num_attention_heads n_heads heads",
    "model.hidden_size": "hidden_dim d_model model_dim width",
    "model.intermediate_size": "mlp_dim ffn_dim d_ff",
    "model.max_length": "max_position_embeddings",
    "model.query_prompt": "query_prefix query_instruction prompts"
    " query_instruction_for_retrieval",
    "model.document_prompt": "passage_prefix document_prefix doc_prefix passage_prompt"
    " passage_instruction",
    "model.include_prompt": "set_pooling_include_prompt pool_prompt mask_prompt",
    "model.add_bos": "add_bos_token prepend_bos",
    "model.add_eos": "add_eos_token append_eos append_eos_token",
    "model.head": "architecture model_type head_type",
    "tokenizer": "tokenizer_name tokenizer_name_or_path",
    "teacher.model": "teacher teacher_model teacher_name reranker cross_encoder",
    "data.corpus": "corpus_path corpus_file corpus_name collection passages",
    "data.query_length": "query_max_len query_max_length query_maxlen q_max_len"
    " max_query_length max_query_len",
    "data.document_length": "max_seq_length max_seq_len max_length passage_max_len"
    " passage_max_length p_max_len doc_maxlen doc_max_len max_passage_length"
    " document_max_length passage_length doc_length seq_len sequence_length",
    "data.group_size": "train_group_size train_n_passages nway num_passages"
    " num_negatives n_negatives negatives_per_query hard_negatives",
    "data.threads": "num_workers dataloader_num_workers num_proc workers",
    "data.prefetch": "dataloader_prefetch_factor prefetch_factor prefetch_size",
    "loss": "loss_fn loss_type loss_function criterion",
    "regularizer": "regularizer_type reg_type flops_loss",
    "evaluate.test": "test do_eval eval_benchmark",
}
_FIELD_OF = {
    name: field for field, names in _ELSEWHERE.items() for name in names.split()
}
# Names of things that are not fields here.
_INSTEAD = {
    "c.dev.source.files": "eval_files eval_file dev_file dev_files val_file"
    " validation_file"
    " eval_data dev_data",
    "c.dev.source.dataset": "eval_dataset eval_dataset_name dev_dataset",
    "c.data.source.files": "train_file train_files train_data data_path data_files"
    " train_path"
    " train_dir data_dir triples",
    "c.data.source.dataset": "dataset_name train_dataset hf_dataset",
    # Sums of the gradients of several batches have other in-batch negatives, and other
    # regularizers, than the gradient of one batch.
    "c.batch_size for the texts that a step's loss compares, all of them, and"
    " c.memory.encode_chunk for how many a device encodes at a time, which changes no"
    " result (GradCache)": "gradient_accumulation_steps grad_accum accumulation_steps"
    " grad_accum_steps accumulate_grad_batches gradient_accumulation accum_steps"
    " accum_freq",
    "c.optim.optimizer.b1": "beta1 adam_beta1 beta_1",
    "c.optim.optimizer.b2": "beta2 adam_beta2 beta_2",
    "c.optim.optimizer.eps": "epsilon adam_epsilon adam_eps",
    "--workdir": "output_dir save_dir work_dir workdir exp_dir logging_dir run_dir"
    " experiment checkpoint_dir",
    "--num_processes, and one process for each": "nproc world_size num_processes"
    " nproc_per_node",
    'c.loss = {"kl": {"temperature": …}}': "kd_temperature distillation_temperature"
    " tau",
    "c.regularizer.query": "lambda_q q_reg lambda_query query_lambda"
    " query_regularizer_weight flops_weight_q query_reg",
    "c.regularizer.document": "lambda_d d_reg lambda_document document_lambda"
    " lambda_doc document_regularizer_weight flops_weight_d doc_reg",
    'c.init = {"encoder": "…"}': "model_name model_name_or_path pretrained base_model"
    " backbone pretrained_model pretrained_model_name_or_path encoder_name",
    "c.model.head.pooling": "pooling_mode pooling_strategy pooling_method pool_type",
    "the same command, which goes on by itself": "resume resume_from"
    " resume_from_checkpoint auto_resume",
}
_INSTEAD_OF = {name: what for what, names in _INSTEAD.items() for name in names.split()}


def field_of(name: str, known: Iterable[str]) -> str | None:
    """The field that a flag of another program sets, or one of this name; or None."""
    wanted = _FIELD_OF.get(name, name)
    found = [one for one in known if f".{one}".endswith(f".{wanted}")]
    return min(found, key=len, default=None)


def not_a_field(
    field: str, known: Iterable[str], where: str = "config", value: Any = None
) -> str:
    """The message for an unknown field, with the intended or the nearest one."""
    if moved := place(field, value):
        return f"{where}.{field} has moved: {moved}"
    known, last = list(known), field.rpartition(".")[2].lower().replace("-", "_")
    if last in _INSTEAD_OF:
        instead = f"use {_INSTEAD_OF[last]}"
    else:
        instead = f"the nearest is {where}.{_nearest(field, last, known)}"
    return f"{where}.{field} is not a field; {instead}. docs/config.md lists them all."


def _nearest(field: str, last: str, known: list[str]) -> str:
    def closest(names, cutoff=0.0):
        return nearest(field, names, cutoff)

    def ends(wanted):
        return [name for name in known if f".{name}".endswith(f".{wanted}")]

    # With several stages, the one whose name is nearest.
    meant = ends(_FIELD_OF[last]) if last in _FIELD_OF else []
    return (
        closest(meant)
        or closest(known, cutoff=0.85)
        or closest(ends(last))
        or closest(known)
    )
