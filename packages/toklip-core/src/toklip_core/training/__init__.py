"""Training: one loop for every package.

    task.py        Task, the value that is fitted  optimizers.py  AdamW and Muon, their groups
    loop.py        fit(), read top to bottom       losses.py      contrasts and distillation
    passes.py      micro-batches of a step         run_folder.py  settings, log, result, resume
    order.py       which sample comes when         checkpoints.py one checkpoint, whole or in shards
    sources.py     several sources, one by one     signals.py     SIGTERM ends a run with a checkpoint
    worker_errors.py  errors of workers, in one line
    cpu_attention.py  attention by matrix products, in bfloat16 on a CPU
    next_id.py     losses of models that predict ids, level by level

__init__.pyi lists the public names; each is imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
