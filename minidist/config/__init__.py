"""Typed configuration: YAML and dotted overrides in, one frozen object out. Imports no torch, ray, vllm or deepspeed."""

from minidist.config.distill import DistillConfig
from minidist.config.load import dump, load
from minidist.config.score import ScoreConfig
from minidist.config.stages import CONFIGS, Config, EvaluateConfig, SftConfig

__all__ = ["CONFIGS", "Config", "DistillConfig", "EvaluateConfig", "ScoreConfig", "SftConfig", "dump", "load"]
