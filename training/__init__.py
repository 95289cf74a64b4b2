"""Training of ClaSegNet and the systems it is measured against, from folders of films to an engine file.

    python -m training.train --data DIR --out RUNDIR
    python -m training.evaluate ENGINE|RUNDIR --data DIR
    python -m training.reproduce --data DIR --out DIR
    python -m training.export RUNDIR --data DIR --out model.ptxengine

What lies where, in the order data passes through: `data` (readers of folders, splits, cache, augmentation, batches),
`lungs` and `made_positives` (positives made from negatives), `models`, `losses`, `learner` (a network in training),
`pretrain`, `train`, `predictions`, `scoring` and `choices` (what validation films decide), `readings` (one row a film),
`metrics` and `measure`, `evaluate`, `report`, `crossval`, `reproduce`, `export`, `model_card`.  Beside that path:
`build_table` (films for `ptxsdk build`), `depthwise` and `distil_int8` (an INT8 network that keeps its accuracy),
`scope` (the gate's model of what a chest film looks like).  Preprocessing is the SDK's own op,
here as on the device. See docs/training.md.
"""
