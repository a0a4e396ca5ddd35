"""`grade`: whether answers are right."""

from minidist.config.base import Section
from minidist.config.system2 import AnswerForm


class GradeConfig(Section):
    """Compares answers with a gold answer."""

    gold: str
    """Column of the gold answer."""
    form: AnswerForm = "text"
    """How answers are compared; see program.form."""
