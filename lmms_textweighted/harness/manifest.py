"""What lmms-eval's registry reads at every command: names only, no torch."""

from lmms_eval.models.registry_v2 import ModelManifest

MANIFEST = ModelManifest(
    model_id="llava_textweighted",
    simple_class_path="lmms_textweighted.harness.model.LlavaTextweighted",
    chat_class_path="lmms_textweighted.harness.model.LlavaTextweightedChat",
)
