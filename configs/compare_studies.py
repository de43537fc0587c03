"""Whether finished case studies of one SAE point at the same latents.

    python -m experiments.compare_studies --config=compare_studies --config.studies=runs/one,runs/other \\
        --out=runs/compared.json

For every two cases, of one study or of two: the rank of each one's first latent in the
other with the chance of such a rank, its effect toward the behaviour in both (where the
other study steered it too; changes in percentage points, beside the rate without
steering), and the overlap of the selections against chance, which draws latents that
fire as often.

Hardware: any; seconds, since nothing is computed anew. Run it from the folder that the
studies were run in.
"""

from ml_collections import ConfigDict

from sae_attr.study.study_comparison import ComparisonSettings

from . import config_of

INPUTS = {"studies": "workdirs of finished case studies, separated by commas."}
SETTINGS = {"": (INPUTS, ComparisonSettings)}


def get_config() -> ConfigDict:
    """Returns the settings with their defaults; `studies` are to be given."""
    config = config_of(ComparisonSettings)
    config.studies = ()
    return config
