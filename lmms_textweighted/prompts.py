"""Prompts: the conversation around a question, and the single-prediction instruction."""

SINGLE_PREDICTION_PROMPT = "\nAnswer with the option's letter from the given choices directly."
SHORT_ANSWER_PROMPT = "\nAnswer the question using a single word or phrase."

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
