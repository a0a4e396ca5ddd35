"""The configuration of each stage, by its name."""

from typing import get_args

from minidist.config.compare import CompareConfig
from minidist.config.compare_lessons import CompareLessonsConfig
from minidist.config.distill import DistillConfig
from minidist.config.evaluate import EvaluateConfig
from minidist.config.evaluate_programs import EvaluateProgramsConfig
from minidist.config.generate import GenerateConfig
from minidist.config.score import ScoreConfig
from minidist.config.score_table import ScoreTableConfig
from minidist.config.sft import SftConfig
from minidist.config.teach import TeachConfig
from minidist.config.toy import ToyConfig

Config = SftConfig | DistillConfig | EvaluateConfig | EvaluateProgramsConfig | GenerateConfig | ScoreConfig | ScoreTableConfig
"""Stages that are one run with roles."""

Command = Config | TeachConfig | CompareConfig | CompareLessonsConfig | ToyConfig
"""All that a configuration file may hold."""

CONFIGS: dict[str, type[Command]] = {get_args(each.model_fields["stage"].annotation)[0]: each for each in get_args(Command)}
"""Configuration class of each stage."""
