"""teacher.overlap on a GPU: features and losses of a run whose teacher has a stream of its own, to the bit."""

import pytest
import torch

from distill_engine.data.tokens.layout import SpecialTokens
from distill_engine.families.lookup import family_named
from distill_engine.families.shape import Sizes
from distill_engine.models.adapter import adapt
from distill_engine.student.build import build_student, fresh_config
from distill_engine.student.projections import feature_tensors
from distill_engine.teachers.ahead import AheadTeacher
from distill_engine.teachers.live import LiveTeacher
from distill_engine.values import Batch, FeatureRequest, Stack, Tokens

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: there are no streams"),
]
REQUEST = FeatureRequest(hidden={Stack.DECODER: (0, 2)})
STEPS, VOCABULARY = 12, 512


class Engine:
    """A frozen model on the GPU."""

    def __init__(self) -> None:
        family = family_named("blenderbot")
        config = fresh_config(family, Sizes(2, 3, 256, 512, 4, 128), VOCABULARY, SpecialTokens(0, 2, 1))
        self.model = adapt(build_student(family, config, None, seed=2).cuda().half()).eval()

    @torch.no_grad()
    def features(self, batch, request):
        return self.model(batch, request)


def batch_of(number: int) -> Batch:
    """Four rows; each batch is of another length."""
    draw = torch.Generator().manual_seed(number)
    contexts, labels = (torch.randint(3, VOCABULARY, (4, length), generator=draw) for length in (60 + number, 32))
    return Batch.of(Tokens(contexts, torch.ones_like(contexts)), labels, labels).to("cuda")


@pytest.mark.parametrize("accumulation", [1, 4])
def test_features_are_those_of_one_stream(accumulation):
    """What the student makes lets memory go and takes it again all the time, and features are read late: a pass that
    overwrote one or was not waited for would show."""
    engine = Engine()
    batches = [batch_of(number) for number in range(STEPS * accumulation + 1)]
    plain = [[tensor.clone() for tensor in feature_tensors(engine.features(batch, REQUEST))] for batch in batches]
    work = torch.randn(2048, 2048, device="cuda", dtype=torch.float16)
    coming = iter(batches[accumulation::accumulation])
    teacher = AheadTeacher(LiveTeacher(engine), lambda: next(coming), torch.device("cuda"))
    wrong = []
    for step in range(STEPS):
        handed = teacher.features(batches[step * accumulation : (step + 1) * accumulation], REQUEST)
        for number in range(accumulation):
            features = next(handed)
            scratch = [torch.mm(work, work) for _ in range(4)]
            exact = plain[step * accumulation + number]
            wrong += [(one != other).sum() for one, other in zip(feature_tensors(features), exact, strict=True)]
            del features, scratch
    assert not torch.stack(wrong).any()
