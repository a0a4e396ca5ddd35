"""What all tests share: quiet, offline, and threads that sleep when they wait."""

import os

os.environ.update(
    OMP_WAIT_POLICY="PASSIVE",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    TRANSFORMERS_VERBOSITY="error",
    DS_ACCELERATOR="cpu",
)
