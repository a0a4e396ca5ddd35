"""The stages by name, and the configuration of each."""

from minidist.config.compare import CompareConfig
from minidist.config.distill import DistillConfig
from minidist.config.evaluate import EvaluateConfig
from minidist.config.score import ScoreConfig
from minidist.config.sft import SftConfig
from minidist.config.toy import ToyConfig

Config = SftConfig | DistillConfig | EvaluateConfig | ScoreConfig
"""What one run takes."""


Command = Config | CompareConfig | ToyConfig
"""What a configuration file holds."""


VERBS = {"toy": "compare"}
"""The verb of a stage that has none of its own name."""


CONFIGS: dict[str, type[Command]] = {
    "sft": SftConfig,
    "distill": DistillConfig,
    "evaluate": EvaluateConfig,
    "score": ScoreConfig,
    "compare": CompareConfig,
    "toy": ToyConfig,
}
