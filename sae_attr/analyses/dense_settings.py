"""Settings of a study of dense latents, and the classes that it sorts them into."""

from __future__ import annotations

from dataclasses import dataclass, field

from sae_attr.study.settings import at_least

POSITION, NULL_SPACE, ALPHABET = "position", "null_space", "alphabet"
PRINCIPAL, WORD = "principal", "word"
CLASSES = (POSITION, NULL_SPACE, ALPHABET, PRINCIPAL, WORD)
NO_CLASS = "none"


@dataclass(frozen=True)
class RetrainingSettings:
    """The test on planted data: an SAE is trained on sparse features and one dense
    Gaussian direction; then again without the span of its dense latents, and without a
    random span of the same size.

    Args:
      steps: of every training; 0 leaves the test out.
      tokens: per step.
      width: of the data.
      features: sparse ones in the data.
      rate: how often each of them is active.
      deviation: standard deviation of the dense direction; a sparse feature has length
        1 to 2.
      latents, k: of the SAE, a BatchTopK.
      measured: tokens on which density is counted.
    """

    steps: int = 600
    tokens: int = 512
    width: int = 32
    features: int = 64
    rate: float = 0.02
    deviation: float = 1.5
    latents: int = 96
    k: int = 2
    measured: int = 20_000

    def __post_init__(self) -> None:
        at_least(self, 0, "steps")
        at_least(self, 1, "tokens", "features", "latents", "k", "measured")
        # A span of dense latents is taken out of it, and something has to be left.
        at_least(self, 4, "width")
        if not 0 < self.rate < 1:
            raise ValueError(f"rate is {self.rate}; it must be a share between 0 and 1")
        if not self.deviation > 0:
            raise ValueError(f"deviation is {self.deviation}; it must be above 0")


@dataclass(frozen=True)
class DenseSettings:
    """Sets what counts as dense, and what each class asks for. The thresholds are those
    of Sun et al. (arXiv:2506.15679).

    Args:
      tokens: of ordinary text, on which firing rates and the covariance are measured.
      sample_tokens: of them whose activations are compared with positions and words;
        what is in memory depends on this number alone.
      dense: a latent that fires on a larger share of tokens is dense.
      most: latents that are looked at, the densest first.
      antipodal: product of encoder and decoder cosines from which two latents are a
        pair.
      position: Spearman's rho, in size, of the activation with the distance since the
        start of sentence, paragraph or context.
      null_directions: last left singular directions of the unembedding.
      null_energy: share of a decoder row's square in their span.
      letter_tokens: best tokens of the logit lens.
      letter_share: share of them that begin with one letter.
      principal: cosine, in size, with the first principal component of the site.
      words: file of words with their classes, a word and its class a line; empty leaves
        the class out.
      word_auc: area under the curve of the activation for one class of words.
      order: of the classes; a latent that meets several is counted in the first.
      entropy_tokens: of ordinary text, whose final states the effect on the entropy of
        the next token is averaged over; 0 leaves it out.
      top: latents of every ranking among which the dense are counted.
      retraining: the test on planted data.
      seed: of the planted data and its SAEs.
    """

    tokens: int = 50_000
    sample_tokens: int = 20_000
    dense: float = 0.1
    most: int = 512
    antipodal: float = 0.9
    position: float = 0.4
    null_directions: int = 10
    null_energy: float = 0.2
    letter_tokens: int = 100
    letter_share: float = 0.9
    principal: float = 0.75
    words: str = ""
    word_auc: float = 0.75
    order: tuple[str, ...] = CLASSES
    entropy_tokens: int = 256
    top: int = 100
    retraining: RetrainingSettings = field(default_factory=RetrainingSettings)
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(self, 1, "tokens", "sample_tokens", "most", "top")
        at_least(self, 1, "null_directions", "letter_tokens")
        at_least(self, 0, "entropy_tokens")
        for name in _SHARES:
            if not 0 < getattr(self, name) < 1:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; it must be between 0 and 1"
                )
        if sorted(self.order) != sorted(CLASSES):
            raise ValueError(
                f"order {', '.join(self.order) or 'of nothing'}: give each of "
                f"{', '.join(CLASSES)} once"
            )


_SHARES = (
    "dense",
    "antipodal",
    "position",
    "null_energy",
    "letter_share",
    "principal",
    "word_auc",
)
