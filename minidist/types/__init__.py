"""The data that roles exchange: frozen dataclasses of numpy arrays, which pickle and which Ray shares without copying.

Index t of every per-token array describes the t-th *generated* token. Axes: B rows, S positions of a sequence, P prompt tokens,
T generated tokens, L loss tokens of a row, K listed tokens, D hidden size, V vocabulary.
"""

from minidist.types.arrays import Array
from minidist.types.batches import MAIN, Batch, Credit, Measures, Row, Stream, Update
from minidist.types.labelled import Exercise, Judged, LabelledRow, TaskFacts, TaskKind
from minidist.types.ranks import RankGroup
from minidist.types.rollouts import Finish, Prompt, Reply, Rollout, Sampling, Writer
from minidist.types.scores import KeptScores, MixedScores, Payload, Scores, TeacherScores, members_of, with_members
from minidist.types.vocabulary import Vocabulary
from minidist.types.weights import PROBE_TOKENS, Adaptation, Channel, Outline, Probe, Weights

__all__ = [
    "MAIN",
    "PROBE_TOKENS",
    "Adaptation",
    "Array",
    "Batch",
    "Channel",
    "Credit",
    "Exercise",
    "Finish",
    "Judged",
    "KeptScores",
    "LabelledRow",
    "Measures",
    "MixedScores",
    "Outline",
    "Payload",
    "Probe",
    "Prompt",
    "RankGroup",
    "Reply",
    "Rollout",
    "Row",
    "Sampling",
    "Scores",
    "Stream",
    "TaskFacts",
    "TaskKind",
    "TeacherScores",
    "Update",
    "Vocabulary",
    "Weights",
    "Writer",
    "members_of",
    "with_members",
]
