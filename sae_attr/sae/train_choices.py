"""Names that the settings of an SAE's training choose from."""

OBJECTIVES = (
    "relu",
    "gated",
    "topk",
    "multi_topk",
    "batch_topk",
    "jumprelu",
    "matryoshka",
    "crosscoder",
    "crosscoder_l1",
)
RANKED = ("topk", "multi_topk", "batch_topk", "matryoshka", "crosscoder")
ANNEALED = ("batch_topk", "matryoshka", "crosscoder")
CROSSCODERS = ("crosscoder", "crosscoder_l1")
ERRORS = ("squared", "norm")
QUADRATIC = ("quadratic", "quadratic_mean")
PENALTIES = ("step", "tanh", *QUADRATIC)
SCALES = ("rms", "unit", "none")
RISES = ("linear", "cosine")
CENTRES = ("mean", "median", "zero")
