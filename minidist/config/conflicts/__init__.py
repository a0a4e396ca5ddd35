"""Rules between sections: each function yields one sentence for every combination of settings that is refused.

A function of a stage yields all conflicts of the stage.
"""

from minidist.config.conflicts.distillation import distill
from minidist.config.conflicts.evaluation import evaluate, evaluate_programs
from minidist.config.conflicts.files import generate, score, score_table
from minidist.config.conflicts.lessons import teach
from minidist.config.conflicts.supervised import sft

__all__ = ["distill", "evaluate", "evaluate_programs", "generate", "score", "score_table", "sft", "teach"]
