"""The weights of a student that is cut from a larger model, written once, from which every role of a run loads it."""

import os
from pathlib import Path
from typing import TypeVar

from minidist.config import DistillConfig, SftConfig
from minidist.config.origin import with_origin
from minidist.models.hub import load_model, tokenizer_of
from minidist.models.layers import cut
from minidist.run.files import remove, rename, writing
from minidist.run.tracking import log

C = TypeVar("C", SftConfig, DistillConfig)


def with_initial(config: C, folder: Path) -> C:
    """Write the student that `student.init` describes into `folder`, whole or not at all, unless it is there from an earlier
    start of the run; returns the configuration with it as the student's checkpoint."""
    student = with_origin(config).student
    assert student.init is not None
    if not folder.exists():
        partial = folder.with_name(f".{folder.name}")
        if os.path.lexists(partial):  # of a run that was killed while it wrote
            remove(partial)
        with writing(folder):
            model = cut(load_model(student, "student.model"), student.init.layers)
            model.save_pretrained(partial)
            tokenizer_of(student, "student.model").save_pretrained(partial)
            rename(partial, folder)
        log.info("student cut from %s: %s", student.model, folder)
    cut_student = student.model_copy(update={"model": str(folder), "tokenizer": None, "init": None})
    return config.model_copy(update={"student": cut_student})
