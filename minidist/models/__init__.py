"""Hugging Face models: found, loaded, run up to their hidden states, adapted, and measured."""

from minidist.models.imports import import_less

import_less()  # before anything imports a model of transformers
