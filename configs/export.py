"""Writes an SAE, or single directions of its decoder, in the layouts of other tools.

    python -m experiments.export --config=export --config.sae=SAE --config.layout=saelens --workdir=runs/exported
    python -m experiments.export --config=export --config.sae=SAE --config.latents=77,12 --config.vectors=safetensors \\
        --workdir=runs/directions
    ... --config.latents=77 --config.vectors=repeng --config.model_type=llama
    ... --config.layout=saelens --config.license=apache-2.0 --push=OWNER/NAME

SAE as for configs/attribute.py. `saelens/` or `dictionary_learning/` in the workdir holds
the SAE; `directions.safetensors` all directions, `latent_77.gguf` that of one latent as a
control vector of repeng, which llama.cpp reads too; export.json says what they are.
--push lists these files, with a model card, and uploads them to a hub repository, a private
one unless --push_private=False makes it anew; `hf auth login` comes first. Metrics of the
card are those that train_sae measured, where its result.json lies beside the SAE.

Hardware: memory for the SAE where a layout is written; directions read their rows alone.
"""

from dataclasses import dataclass

from ml_collections import ConfigDict

from sae_attr.sae.formats.parts import LoadOptions

from . import config_of


@dataclass(frozen=True)
class Export:
    """What is written.

    Args:
      sae: folder, file or hub address of the SAE.
      sae_format: one of `sae.formats.FORMATS`, or auto.
      layout: of the whole SAE: saelens or dictionary_learning; None: it is not written.
      dtype: of the weights that are written.
      latents: whose decoder rows are written as directions.
      vectors: how: safetensors (one file) or repeng (a GGUF control vector each).
      scale: norm of each direction; negative for the opposite ones.
      model_type: of repeng: the model's, as its config.json has it, such as llama.
      layer: of repeng: the block after which a direction is added; None: the one whose
        output the SAE reads.
      license: of what is uploaded, as the hub spells it, such as apache-2.0.
      base_model: hub id of the language model, for the card; None: as the SAE's file
        says.
    """

    sae: str | None = None
    sae_format: str = "auto"
    layout: str | None = None
    dtype: str = "float32"
    latents: tuple[int, ...] = ()
    vectors: str = "safetensors"
    scale: float = 1.0
    model_type: str | None = None
    layer: int | None = None
    license: str | None = None
    base_model: str | None = None


SETTINGS = {
    "": (Export, {"sae_options": "see `sae.formats.parts.LoadOptions`."}),
    "sae_options": (LoadOptions,),
}


def get_config() -> ConfigDict:
    """Returns the defaults, with inputs and layouts left to the command line."""
    config = config_of(Export)
    config.sae_options = config_of(LoadOptions)
    return config
