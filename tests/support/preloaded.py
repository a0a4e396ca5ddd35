"""What a run in one process imports; loaded once, by the process from which `commands` forks."""

import os

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # read when torch is imported; minidist sets it where vLLM runs on a CPU

import deepspeed  # noqa: F401
import ray  # noqa: F401
from transformers import AutoModelForCausalLM, LlamaForCausalLM  # noqa: F401
from vllm import EngineArgs  # noqa: F401
from vllm.v1.engine.llm_engine import LLMEngine  # noqa: F401

import minidist.stages.distill
import minidist.stages.evaluate
import minidist.stages.score
import minidist.stages.sft  # noqa: F401
