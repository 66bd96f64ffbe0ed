r"""Spark: a random forest that a Spark job trains, with local executors or a cluster's.

What it teaches: a job that ``spark-submit`` starts is tuned as it is; it writes what it found to the file
that Tuner names. On a cluster give it its ``--master``, and Tuner few cpus: the work is elsewhere::

    tuner run --study spark --trials 8 --direction maximize --metric accuracy --metrics file --cpus 2 \
        --param 'trees=int(2,20)' --param 'depth=int(2,10)' --command 'spark-submit \
        --master local[2] objectives/programs/forest_spark.py {trees} {depth} {metrics}'

It needs ``pip install pyspark`` and a Java of 17 or newer.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pyspark.ml.classification import RandomForestClassifier
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.ml.linalg import Vectors
from pyspark.sql import SparkSession
from sklearn.datasets import load_wine


def main(trees: int, depth: int, file: str) -> None:
    """Train on 70 % of the wines and write the accuracy on the others."""
    spark = SparkSession.builder.appName("forest").getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    rows = [(Vectors.dense(x), int(y)) for x, y in zip(*load_wine(return_X_y=True), strict=True)]
    train, test = spark.createDataFrame(rows, ["features", "label"]).randomSplit([0.7, 0.3], seed=0)

    model = RandomForestClassifier(numTrees=trees, maxDepth=depth, seed=0).fit(train)
    accuracy = MulticlassClassificationEvaluator(metricName="accuracy").evaluate(model.transform(test))
    Path(file).write_text(json.dumps({"accuracy": accuracy}))
    spark.stop()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
