"""Training of ClaSegNet, from films to an engine file.

    python -m training.train --data DIR --out RUNDIR
    python -m training.evaluate RUNDIR --data DIR
    python -m training.export RUNDIR --data DIR --out model.ptxengine

The modules, in the order data passes through them: `data` (films, folds, cache), `augment`, `model`, `losses`,
`depthwise` (a faster backward pass on CPUs), `train`, `metrics`, `scoring` (image score, calibration, thresholds),
`evaluate`, `export`. Preprocessing is the SDK's own op, here as on the device.
"""
