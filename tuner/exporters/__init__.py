"""Studies in other programs: TensorBoard, MLflow, Weights & Biases, files; and a plug-in of your own.

::

    tuner.optimize(study, objective, n_trials=100, callbacks=[tuner.exporters.live("tensorboard", "runs")])
    tuner.exporters.export("digits", "parquet", "digits.parquet")

On the command line: ``tuner run ... --export tensorboard=runs``, ``tuner export digits --format parquet``.

An exporter is a class (:class:`Exporter`) that a package names in its entry points, under the
name by which it is asked for::

    [project.entry-points."tuner.exporters"]
    mine = "my_package:MyExporter"

It is given frozen values of the store's reads (:mod:`storage.exports`), never a row or a handle.
"""

from __future__ import annotations

from storage.exports import ExportedStudy, ExportedTrial
from tuner.exporters.base import Exporter, make, names
from tuner.exporters.live_export import Live, live
from tuner.exporters.once import export

__all__ = ["ExportedStudy", "ExportedTrial", "Exporter", "Live", "export", "live", "make", "names"]
