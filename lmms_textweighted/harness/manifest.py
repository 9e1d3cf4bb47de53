"""What lmms-eval's registry reads at every command: names only, no torch."""

from lmms_eval.models.registry_v2 import ModelManifest

from lmms_textweighted.harness.names import MODEL_NAME, SECOND_NAME

MANIFEST = ModelManifest(
    model_id=MODEL_NAME,
    aliases=(SECOND_NAME,),
    simple_class_path="lmms_textweighted.harness.door.LlavaTextweighted",
    chat_class_path="lmms_textweighted.harness.door.LlavaTextweightedChat",
)
