"""What MLF-DNN, MTFN and MLMF add to LF-DNN, TFN and LMF: a task per modality, on its own human
labels (Yu et al., CH-SIMS, ACL 2020)."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass as validated_dataclass
from torch import Tensor, nn

from core.batch import Utterances
from core.dropout import Probability
from core.encoders.inputs import Inputs, has_frames, refuse_without_unimodal_labels
from core.losses.labels import unimodal_loss
from core.model import DataSpec, Model, Sentiment
from core.models.fusion.subnets import SubnetOptions, Subnets, three_layers

LESS_THAN_ONE_LABEL = 1e-6  # the number of labels per rank and micro-batch is 0 or more than this


@validated_dataclass(frozen=True)
class MultiTaskOptions(SubnetOptions):
    """Settings that the three models share; each has its own sizes and weights."""

    post_text: PositiveInt = 32  # widths of the modalities' heads
    post_audio: PositiveInt = 8
    post_vision: PositiveInt = 32
    drop_heads: Probability = 0.4  # before the modalities' heads
    fusion_weight: PositiveFloat = 1.0  # of the loss of the fused score
    # these three, of the loss of a modality's own score; 0: it has no head
    text_weight: NonNegativeFloat = 1.0
    audio_weight: NonNegativeFloat = 1.0
    vision_weight: NonNegativeFloat = 1.0


@dataclass(frozen=True)
class Output(Sentiment):
    views: dict[str, Tensor]  # modality -> (B,), the score by that modality alone


class MultiTask(Model[Utterances, Output]):
    """Base of the three: subnets, heads of single modalities, and the ``fusion`` that each of them
    makes.

    A head learns human labels of its modality by the absolute error: a mean over those samples of
    the global batch that have the modality and a label of it, so that few labels are no small task.
    Only the fused score is an answer.
    """

    task = "sentiment"
    fusion: nn.Module  # vectors by modality to (B, outputs)

    def __init__(self, config: MultiTaskOptions, data: DataSpec, name: str, text_out: int):
        """
        Args:
            name: of the model.
            text_out: width of the text's vector.

        Raises:
            ValueError: the data have no human labels of a modality whose weight is not 0.
        """
        super().__init__()
        self.inputs = Inputs(data, config.inputs, config.modalities)
        self.subnets = Subnets(config, data, text_out)
        self.fusion_weight = config.fusion_weight
        weights = {
            "text": config.text_weight,
            "audio": config.audio_weight,
            "vision": config.vision_weight,
        }
        self.weights = {m: weights[m] for m in self.subnets.modalities if weights[m]}
        refuse_without_unimodal_labels(data, name, self.weights)
        hidden = {
            "text": config.post_text,
            "audio": config.post_audio,
            "vision": config.post_vision,
        }
        self.heads = nn.ModuleDict()
        for m in self.weights:
            self.heads[m] = three_layers(self.subnets.width[m], hidden[m], 1, config.drop_heads)

    def forward(self, batch: Utterances) -> Output:
        vectors = self.subnets(*self.inputs(batch))
        score = self.fusion(vectors).float()  # (B, outputs)
        views = {}
        if self.training:
            views = {m: head(vectors[m]).squeeze(1).float() for m, head in self.heads.items()}
        return Output(score=score.squeeze(1), views=views)

    def losses(self, output: Output, batch: Utterances) -> dict[str, Tensor]:
        losses = {"task": self.fusion_weight * batch.mean(batch.errors(output.score))}
        for m, score in output.views.items():
            error = unimodal_loss(score, batch.unimodal_labels[m]) * self._is_learnt(m, batch)
            count = batch.loss_denominators[m].clamp(min=LESS_THAN_ONE_LABEL)
            losses[m] = self.weights[m] * error.sum() / count
        return losses

    def loss_denominators(self, batch: Utterances) -> dict[str, Tensor]:
        counts = {}
        for m in self.weights:
            known = batch.unimodal_labels[m].isfinite()
            counts[m] = (known * self._is_learnt(m, batch)).sum()
        return counts

    @staticmethod
    def _is_learnt(m: str, batch: Utterances) -> Tensor:
        """(B,) float, the weight of a sample in the loss of a modality; 0 where it lacks that."""
        return has_frames(batch.present[m]) * batch.weight

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """Each modality's subnet has a group, for MMSA gives each its own weight decay."""
        return self.subnets.groups(self, own_text=True)
