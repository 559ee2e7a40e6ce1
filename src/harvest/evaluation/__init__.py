"""What a model can do: retrieval, choice, recognition, question answering, masked words, and fine-tuned heads."""

from harvest.data.labels import read_class_names
from harvest.evaluation.embed import Embeddings, embed_texts, embed_videos
from harvest.evaluation.motion_truth import motion_truth
from harvest.evaluation.result import Result, table
from harvest.evaluation.settings import EvalSettings
from harvest.evaluation.tasks import TASKS, evaluate
from harvest.evaluation.word_filling import fill_mask

__all__ = [
    "TASKS",
    "Embeddings",
    "EvalSettings",
    "Result",
    "embed_texts",
    "embed_videos",
    "evaluate",
    "fill_mask",
    "motion_truth",
    "read_class_names",
    "table",
]
