"""Typed configuration: YAML and dotted overrides in, one frozen object out. Imports no torch, ray, vllm or deepspeed."""

from minidist.config.changes import difference
from minidist.config.compare import CompareConfig
from minidist.config.compare_lessons import CompareLessonsConfig
from minidist.config.distill import DistillConfig
from minidist.config.evaluate import EvaluateConfig
from minidist.config.evaluate_programs import EvaluateProgramsConfig
from minidist.config.generate import GenerateConfig
from minidist.config.load import dump, load
from minidist.config.score import ScoreConfig
from minidist.config.score_table import ScoreTableConfig
from minidist.config.sft import SftConfig
from minidist.config.stages import CONFIGS, Command, Config
from minidist.config.teach import TeachConfig
from minidist.config.toy import ToyConfig

__all__ = [
    "CompareConfig",
    "CompareLessonsConfig",
    "DistillConfig",
    "EvaluateConfig",
    "EvaluateProgramsConfig",
    "GenerateConfig",
    "ScoreConfig",
    "ScoreTableConfig",
    "SftConfig",
    "TeachConfig",
    "ToyConfig",
]
__all__ += ["CONFIGS", "Command", "Config", "difference", "dump", "load"]
