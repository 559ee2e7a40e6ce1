"""What is learned from clips: each objective's settings, needs and module are in a file of its own.

`OBJECTIVES` lists their settings. It is what a run's configuration reads; nothing else names them one by one.
"""

from harvest.objectives.answer_decoding import AnswerDecodingConfig
from harvest.objectives.classification import ClassificationConfig
from harvest.objectives.contract import Objective
from harvest.objectives.detection import DetectionConfig
from harvest.objectives.embedding_alignment import EmbeddingAlignmentConfig
from harvest.objectives.image_text import ImageTextConfig
from harvest.objectives.masked_alignment import MaskedAlignmentConfig
from harvest.objectives.multimodal import MultimodalConfig
from harvest.objectives.multiple_choice import MultipleChoiceConfig
from harvest.objectives.pixel_reconstruction import PixelReconstructionConfig
from harvest.objectives.post_pretraining import PostPretrainingConfig
from harvest.objectives.question_answering import QuestionAnsweringConfig

OBJECTIVES: tuple[type[Objective], ...] = (
    PostPretrainingConfig,
    ImageTextConfig,
    MaskedAlignmentConfig,
    MultimodalConfig,
    ClassificationConfig,
    QuestionAnsweringConfig,
    AnswerDecodingConfig,
    PixelReconstructionConfig,
    MultipleChoiceConfig,
    DetectionConfig,
    EmbeddingAlignmentConfig,
)
