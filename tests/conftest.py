"""What all tests share: quiet, offline, one thread, which sleeps when it waits."""

import os

os.environ.update(
    OMP_NUM_THREADS="1",  # models are tiny, and a second thread waits for a core that another process has
    OMP_WAIT_POLICY="PASSIVE",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    TRANSFORMERS_VERBOSITY="error",
    DS_ACCELERATOR="cpu",
)
