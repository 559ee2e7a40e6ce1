"""What a model can do without training on the task: retrieval, choice, recognition, filling words in."""

from harvest.data.labels import read_class_names
from harvest.evaluation.embed import Embeddings, embed_texts, embed_videos
from harvest.evaluation.motion_truth import motion_truth
from harvest.evaluation.question_answering import fill_mask
from harvest.evaluation.result import Result, table
from harvest.evaluation.settings import EvalSettings
from harvest.evaluation.tasks import Task, evaluate

__all__ = [
    "Embeddings",
    "EvalSettings",
    "Result",
    "Task",
    "embed_texts",
    "embed_videos",
    "evaluate",
    "fill_mask",
    "motion_truth",
    "read_class_names",
    "table",
]
