"""The networks that are compared, one small file each; all return `training.models.output.Output`."""
